"""The compatibility matrix as a page of Markdown."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._matrix import Cell

WIDTH = 120  # characters of a line, as far as it can be divided
MARKS = {"pass": "✓", "fail": "**✗**", "n/a": "·"}

_HEAD = """\
# Compatibility

A rewritten model should be its owner's model in whatever situation it is put. Here models of the zoo (`tests/zoo`:
hand-made ones and tiny `transformers` models with random weights) are put into each of them. Nothing on this page is
written by hand: `python -m tests.ecosystem.matrix > docs/compatibility.md` measures and writes it.

What is said here is of one set of versions, named below. With which others the core tests pass is on another page,
[versions](versions.md): Python 3.11 to 3.13, torch 2.6 to 2.15.

✓ passed; **✗** failed, for the reason below; `·` does not apply, above all as the original does not do it, either
"""

#: What a user should know of failing cells, by situation.
_WHAT_IT_MEANS = {
    "torch.compile": (
        "The compiled model computes what the eager one does in these cells, too: results are compared before breaks "
        "are counted. Where the original breaks its graph already (a recurrent layer, a value that is read, a scripted "
        "module), dynamo counts the same break once more in each function around it: the original is counted with one "
        "around each host, too. A host that runs under a mode is a break of its own; `explain(model)` says which one, "
        "and why. A recurrent layer that RegBN's own functions call is a break in each of them."
    ),
    "torch.export": (
        "An `UnseenCallError` says that the host is called in another way while it is traced than before, for one with "
        "a mask that `transformers` makes only then. Call the model once with an input that needs the mask (one padded "
        "token) before the export."
    ),
    "generate with cache": (
        "RegBN is never passed by: what cannot be normalised as it would be without a cache is an error, which names "
        "the call and what to do."
    ),
}


def page(
    cells: Sequence[Cell], columns: Mapping[str, Callable[..., Any]], versions: Mapping[str, str], rows: int = 0
) -> str:
    """The whole page, from measured cells; `rows` is how many there are to measure."""
    shown = [name for name in columns if any(cell.situation == name for cell in cells)]
    by_key = {cell.key: cell for cell in cells}
    models = list(dict.fromkeys(cell.model for cell in cells))
    parts = [_HEAD, f"Measured with {', '.join(f'{name} {version}' for name, version in versions.items())}.\n"]
    parts.append(_measured_at(cells) + _summary(cells, models, shown))
    if rows > len(models):
        parts.append(f"{rows - len(models)} of {rows} models have not been measured, and are no rows here yet.\n")
    parts.append("## Situations\n")
    parts.append(_situations(shown, columns, cells))
    parts.append("## Models\n")
    numbers = " | ".join(str(i + 1) for i in range(len(shown)))
    parts.append(f"| model | {numbers} |\n| --- | {' | '.join(':-:' for _ in shown)} |")
    for model in models:
        row = [by_key.get((model, name)) for name in shown]
        marks = [MARKS[cell.status] if cell is not None else "" for cell in row]
        parts.append(f"| {model} | {' | '.join(marks)} |")
    parts.append(_failures(cells))
    parts.append(_does_not_apply(cells))
    return "\n".join(parts).rstrip() + "\n"


def _measured_at(cells: Sequence[Cell]) -> str:
    """Which commits were measured: cells that failed are measured again after a mend, by themselves."""
    commits = Counter(cell.commit for cell in cells if cell.commit).most_common()
    if not commits:
        return ""
    first, *others = commits
    text = f"At commit {first[0]}"
    if others:
        text += "".join(f"; {count} cells again at {commit}" for commit, count in others)
    return f"{text}.\n\n"


def _summary(cells: Sequence[Cell], models: Sequence[str], shown: Sequence[str]) -> str:
    count = Counter(cell.status for cell in cells)
    judged = count["pass"] + count["fail"]
    share = 100 * count["pass"] / judged if judged else 0.0
    missing = len(models) * len(shown) - len(cells)
    return (
        f"**{count['pass']} of {judged} cells pass ({share:.1f}%)**: {len(models)} models in {len(shown)} situations; "
        f"{count['fail']} fail, {count['n/a']} do not apply"
        + (f", {missing} have not been measured (blank).\n" if missing else ".\n")
    )


def _situations(shown: Sequence[str], columns: Mapping[str, Callable[..., Any]], cells: Sequence[Cell]) -> str:
    lines = ["| | situation | what must hold | pass | fail | · |", "| --: | --- | --- | --: | --: | --: |"]
    for number, name in enumerate(shown, 1):
        count = Counter(cell.status for cell in cells if cell.situation == name)
        says = " ".join((inspect.getdoc(columns[name]) or "").split())
        lines.append(f"| {number} | {name} | {says} | {count['pass']} | {count['fail']} | {count['n/a']} |")
    return "\n".join(lines) + "\n"


def _failures(cells: Sequence[Cell]) -> str:
    failed = [cell for cell in cells if cell.status == "fail"]
    lines = [f"\n## Failing cells ({len(failed)})\n"]
    situations = dict.fromkeys(cell.situation for cell in failed)
    lines += [f"**{name}.** {_WHAT_IT_MEANS[name]}\n" for name in situations if name in _WHAT_IT_MEANS]
    lines += [f"- {cell.model}, {cell.situation}: {_code(cell.reason)}" for cell in failed]
    return "\n".join(lines if failed else [*lines, "None."])


def _does_not_apply(cells: Sequence[Cell]) -> str:
    reasons: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell.status == "n/a":
            reasons.setdefault((cell.situation, cell.reason), []).append(cell.model)
    lines = ["\n## Where a situation does not apply\n"]
    for (situation, reason), models in sorted(reasons.items()):
        first, names = f"- {situation}: {_code(reason)}", f"({', '.join(models)})"
        if len(names) <= WIDTH:
            lines.append(f"{first} {names}")
        else:
            lines += [first, textwrap.fill(names, WIDTH, initial_indent="  ", subsequent_indent="  ")]
    return "\n".join(lines if reasons else [*lines, "None."])


def _code(text: str) -> str:
    """As code, with files by their place in the library that they belong to, not on this machine."""
    text = re.sub(r"/\S*/site-packages/", "", re.sub(r" at 0x[0-9a-f]+", "", text))
    text = re.sub(r"(?<![\w/:])/(?:[\w.-]+/)+", "", text)  # also of a path that a reason was cut off in
    return "`" + text.replace("`", "'") + "`"
