"""Reads YAML into plain values that remember their line and column, without YAML 1.1's traps.

PyYAML does the scanning and parsing; what a scalar means follows the YAML 1.2 core schema (`on` and `1:30` are
text, `1e-3` is a number), and whatever a rules file has no use for is refused with its place: aliases (they can
bomb), custom tags, duplicate keys, several documents, deep nesting, huge files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from .problems import Marks, Path, Problem

LARGEST_FILE = 128 * 1024  # bytes: thousands of rules, and at most two seconds of parsing
DEEPEST = 24
_DIGITS = 300  # of one number

_CORE = {
    "tag:yaml.org,2002:null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "tag:yaml.org,2002:int": (re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        list("-+.0123456789"),
    ),
}
_STANDARD = {*_CORE, *(f"tag:yaml.org,2002:{name}" for name in ("str", "map", "seq"))}


class _CoreResolver(BaseResolver):
    """Implicit types of the YAML 1.2 core schema."""


for _tag, (_pattern, _first) in _CORE.items():
    _CoreResolver.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern.pattern})$", re.DOTALL), _first)


class _Refused(yaml.MarkedYAMLError):
    """A construct that rules files may not use."""


class _Loader(Reader, Scanner, Parser, Composer, _CoreResolver):
    """PyYAML up to the node graph, with aliases and deep nesting refused before they are followed."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _CoreResolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, AliasEvent):
            raise _Refused(
                problem=f"aliases (`*{event.anchor}`) are not used in rules files; write the value out, or put "
                "what all rules share under `defaults:`; a glob that starts with `*` is put in quotes",
                problem_mark=mark,
            )
        if self._depth >= DEEPEST:
            raise _Refused(
                problem=f"values are nested more than {DEEPEST} deep; no rules file needs that",
                problem_mark=mark,
            )
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


@dataclass
class Tree:
    """A rules file as plain values, where they stand, and what was wrong with their spelling."""

    value: Any
    marks: Marks
    problems: list[Problem] = field(default_factory=list)


def read_tree(data: bytes, name: str) -> Tree:
    """Read YAML bytes. Problems that leave no value at all (bad syntax) come back with `value` None."""
    if len(data) > LARGEST_FILE:
        return _unreadable(name, f"the file has {len(data)} bytes; a rules file may have at most {LARGEST_FILE}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return _unreadable(name, f"not UTF-8 text (byte {error.start}): {error.reason}", (line, 1))
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        context = f"{error.context}: " if error.context else ""
        prefix = "" if isinstance(error, _Refused) else "not YAML: "
        return _unreadable(name, f"{prefix}{context}{error.problem}", place)
    except ReaderError as error:  # control characters
        position = error.position
        place = (text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position))
        return _unreadable(name, f"not YAML: the character U+{error.character:04X} is not allowed there", place)
    if node is None:
        return _unreadable(name, "the file is empty; a rules file starts with `version: 1`")
    builder = _Builder(name)
    value = builder.build(node, ())
    return Tree(value, Marks(name, builder.values, builder.keys), builder.problems)


def _unreadable(name: str, text: str, place: tuple[int, int] = (1, 1)) -> Tree:
    return Tree(None, Marks(name, {(): place}), [Problem((), text)])


class _Builder:
    """Nodes to plain values, writing down where each stands. Recursion is bounded by the loader's depth."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[Path, tuple[int, int]] = {}
        self.keys: dict[Path, tuple[int, int]] = {}
        self.problems: list[Problem] = []

    def build(self, node: Node, path: Path) -> Any:
        self.values[path] = _place(node)
        if node.tag not in _STANDARD:
            self.problems.append(Problem(path, f"the tag `{node.tag}` is not supported; remove it"))
            return None
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, SequenceNode):
            return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
        assert isinstance(node, MappingNode)
        return self._mapping(node, path)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                line, column = _place(key_node)
                self.problems.append(Problem(path, f"a key must be a name; found a list or mapping at {line}:{column}"))
                continue
            key: str = key_node.value  # the text as written: a module may well be called `on` or `0`
            here = (*path, key)
            if key in out:
                first = self.keys[here]
                line, column = _place(key_node)
                self.problems.append(
                    Problem(
                        here,
                        f"the key `{key}` appears twice: at {first[0]}:{first[1]} and {line}:{column}; keep one",
                        at_key=True,
                    )
                )
                continue
            self.keys[here] = _place(key_node)
            out[key] = self.build(value_node, here)
        return out

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        text: str = node.value
        kind = node.tag.rsplit(":", 1)[1]
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind in ("int", "float"):
            if len(text) > _DIGITS:
                self.problems.append(Problem(path, f"a number of {len(text)} characters is too long"))
                return None
            try:
                return _integer(text) if kind == "int" else _float(text)
            except ValueError:  # an explicit `!!int` on something that is none
                self.problems.append(Problem(path, f"`{text}` is not a number of the kind its tag says"))
                return None
        if kind in ("map", "seq", "bool"):
            self.problems.append(Problem(path, f"`{text}` does not fit its tag `!!{kind}`; remove the tag"))
            return None
        return text


def _place(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _integer(text: str) -> int:
    for prefix, base in (("0x", 16), ("0o", 8)):
        if text.startswith(prefix):
            return int(text[2:], base)
    return int(text, 10)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
