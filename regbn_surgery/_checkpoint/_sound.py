"""What the types of a recipe do not say: which records fit together, and which names and numbers make sense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from .._codec import CodecError
from .._plan.sound import module_path_problem, refuse_unsound
from .._surgery import Operation
from .._surgery._hoist import HoistSpec
from .._surgery._local import LocalSite
from .._surgery._record import CodeSite, End, Place, Step, Stretches

#: Numbers that count from 0, by the record that they are in; those of `_OPEN` may be -1, for "none".
_COUNTED = {
    CodeSite: ("role",),
    LocalSite: ("role",),
    HoistSpec: ("role",),
    End: ("output", "operand"),
    Stretches: ("into", "source", "axis"),
}
_OPEN = {Step: ("ordinal", "instruction"), End: ("turn",)}


def refuse_unsound_operation(operation: Operation, sources: int, where: str) -> None:
    """Raises CodecError, with the place, for what no surgery has written. `sources`: how many functions there are."""
    refuse_unsound(operation.planned, f"{where}.planned")
    for place, text in _problems(operation, sources):
        raise CodecError(f"{where}.{place}" if place else where, text)


def _problems(operation: Operation, sources: int) -> Iterator[tuple[str, str]]:
    for name in ("host", "keeper"):
        if text := module_path_problem(getattr(operation, name)):
            yield name, text
    ways = {name: way for name in ("hook", "code", "graph") if (way := getattr(operation, name)) is not None}
    if len(ways) != 1:
        yield "", f"exactly one of `hook`, `code` and `graph` is expected; found {len(ways)}"
    expected = operation.planned.name
    for name, way in ways.items():
        if way.name != expected and not (operation.keeper and way.name.startswith(f"{expected}_")):
            yield f"{name}.{'site' if name == 'hook' else 'name'}", f"{expected!r} is expected; found {way.name!r}"
    if operation.texts:
        yield "texts", "must be empty: functions are listed in `sources`"
    for name, way in ways.items():
        sides = [mask.side for mask in way.masks]
        if len(set(sides)) < len(sides):
            yield f"{name}.masks", "at most one mask for each side is expected"
    if operation.roles is not None:
        if not operation.roles[0]:
            yield "roles[0]", "the roles of a shared owner are expected; found none"
        if text := module_path_problem(operation.roles[1]):
            yield "roles[1]", text
    yield from _problems_within(operation, "", sources)


def _problems_within(value: Any, where: str, sources: int) -> Iterator[tuple[str, str]]:
    """Of every record inside an operation."""
    if isinstance(value, tuple):
        if is_key(value):
            if value[1] and not (value[1].isascii() and value[1].isdigit() and int(value[1][:9]) < sources):
                yield f"{where}[1]", f"the number of one of {sources} functions is expected; found {value[1]!r}"
            return
        for index, item in enumerate(value):
            yield from _problems_within(item, f"{where}[{index}]", sources)
    elif is_dataclass(value):
        kind = type(value)
        for lowest, table in ((0, _COUNTED), (-1, _OPEN)):
            for name in table.get(kind, ()):
                if not lowest <= getattr(value, name) < 2**31:
                    yield f"{where}.{name}", f"a number from {lowest} is expected; found {getattr(value, name)}"
        if isinstance(value, Place) and not value.steps:
            yield f"{where}.steps", "the steps that lead to a call are expected; found none"
        if isinstance(value, HoistSpec) and not (value.f and value.g):
            yield where, "at least one argument for f and one for g are expected"
        for field in fields(value):
            inner = f"{where}.{field.name}" if where else field.name
            if inner != "planned":
                yield from _problems_within(getattr(value, field.name), inner, sources)


def is_key(value: tuple[Any, ...]) -> bool:
    """Whether this is a call in a graph: its name, file (in a recipe: number of a function), line and count."""
    return len(value) == 4 and [type(x) for x in value] == [str, str, int, int]
