"""What is wrong with a rules file, and where: every problem is collected and told at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .._spelling import did_you_mean as did_you_mean
from .._spelling import listing as listing

#: The way to a value inside a rules file: ("rules", 0, "match", "kind").
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `at_key` points at the key itself rather than at its value."""

    path: Path
    text: str
    at_key: bool = False


@dataclass(frozen=True)
class Marks:
    """Where the values and keys of a rules file stand; empty for rules that came from a dict.

    Lines and columns count from 1.
    """

    name: str = "<dict>"
    values: Mapping[Path, tuple[int, int]] = field(default_factory=dict)
    keys: Mapping[Path, tuple[int, int]] = field(default_factory=dict)

    def at(self, path: Path, *, key: bool = False) -> str:
        """`late.yaml:3:7` for a file, `<dict>: rules[0].match` where there are no lines."""
        if not self.values:
            return f"{self.name}: {spell(path)}" if path else self.name
        table = self.keys if key else self.values
        for end in range(len(path), -1, -1):
            mark = table.get(path[:end]) or self.values.get(path[:end])
            if mark is not None:
                return f"{self.name}:{mark[0]}:{mark[1]}"
        return self.name

    def order(self, problem: Problem) -> tuple[int, int]:
        """For sorting problems by where they stand."""
        table = self.keys if problem.at_key else self.values
        for end in range(len(problem.path), -1, -1):
            mark = table.get(problem.path[:end]) or self.values.get(problem.path[:end])
            if mark is not None:
                return mark
        return (0, 0)


def spell(path: Path) -> str:
    """`rules[0].match.kind` for ("rules", 0, "match", "kind")."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def render(problems: Iterable[Problem], marks: Marks, rule_ids: Mapping[int, str]) -> str:
    """All problems, one a line, in the order in which they stand in the file."""
    ordered = sorted(problems, key=marks.order)
    lines = [_line(problem, marks, rule_ids) for problem in ordered]
    if len(lines) == 1:
        return lines[0]
    return f"{len(lines)} problems in {marks.name}:\n" + "\n".join(f"  {line}" for line in lines)


def _line(problem: Problem, marks: Marks, rule_ids: Mapping[int, str]) -> str:
    path = problem.path
    place = marks.at(path, key=problem.at_key)
    if len(path) >= 2 and path[0] == "rules" and isinstance(path[1], int) and path[1] in rule_ids:
        place += f": rule `{rule_ids[path[1]]}`"
    if marks.values and path:
        place += f": {spell(path)}"
    return f"{place}: {problem.text}"
