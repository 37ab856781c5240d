"""From the sites of a host to its rewritten forward: which expressions get which slots, in which functions."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from ._functions import NoSourceError
from ._locate import Locator
from ._record import CodeSite, Place
from ._table import Helper, Path, SiteTable, Table, made_table
from ._weave import Wrapping, behind_decorators, rewritten_text, weave

_SUPER = re.compile(r"_regbn\.call\(\d+, super\(")


@dataclass(frozen=True)
class Woven:
    """A forward with RegBN in it: `inner` stands in for the function `replaced` behind its decorators."""

    replaced: FunctionType
    inner: FunctionType
    forward: Any
    table: Table
    texts: tuple[tuple[str, str, str, int], ...]  # of each function: file, text before and after, number of first line
    slots: tuple[tuple[int, str, str], ...]  # what each number in the texts is for: the site, and what of it
    #: Whether the way to a place leads through `super().method(...)`: a compiler does not say which function that is,
    #: and would run the one that is there, without RegBN.
    by_super: bool


class Slots:
    """Numbers for the expressions that sites name."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Any, ...], int] = {}

    def path(self, place: Place, *, by_instruction: bool = False) -> Path:
        """The slots on the way to a place."""
        keys: list[tuple[Any, ...]] = [(step.function, step.ordinal) for step in place.steps]
        if by_instruction:
            keys = [(step.code, step.instruction) for step in place.steps]
            keys[-1] = (*keys[-1], place.op)
        return tuple(self._numbers.setdefault(key, len(self._numbers)) for key in keys)

    def find(self, keys: Sequence[tuple[str, int]], op: str) -> Path | None:
        """The path of a call of `op` at (code, instruction) pairs; None where no site names it."""
        last = self._numbers.get((*keys[-1], op)) if keys else None
        if last is None:
            return None
        return (*[self._numbers[key] for key in keys[:-1] if key in self._numbers], last)  # wrappers are left out


def table_of(sites: Sequence[CodeSite], slots: Slots, helpers: dict[Path, tuple[Helper, ...]], by: bool) -> Table:
    """The places of sites as paths."""
    path = functools.partial(slots.path, by_instruction=by)

    def optional(place: Place | None) -> Path | None:
        return None if place is None else path(place)

    def entry(site: CodeSite) -> SiteTable:
        return SiteTable(
            site,
            path(site.join),
            optional(site.f.maker),
            optional(site.g.maker),
            optional(site.f.layer[0] if site.f.layer else None),
            optional(site.g.layer[0] if site.g.layer else None),
            optional(site.f.given[0] if site.f.given else None),
            optional(site.g.given[0] if site.g.given else None),
            optional(site.f.at),
            optional(site.g.at),
            tuple((path(place), output) for place, output in site.f.also),
            tuple((path(place), output) for place, output in site.g.also),
            tuple(path(place) for place in (*site.f.passing, *site.g.passing)),
            tuple(path(place) for place in site.f_readers),
            tuple(path(place) for place in site.g_readers),
            tuple(path(place) for place in (site.scatter.written if site.scatter else ())),
            tuple(path(place) for place in site.onward),
            site.f.looped and site.g.looped,
        )

    places = [place for site in sites for place in (site.join, *site.f_readers, *site.g_readers)]
    writing = frozenset(path(place) for place in places if writes(place.op))
    return made_table(tuple(entry(site) for site in sites), helpers, writing)


def writes(op: str) -> bool:
    """Whether a function or method of this name writes into its first operand."""
    name = op.strip("_") if op.startswith("__") else op
    return name in _IN_PLACE or (name.endswith("_") and name not in _OUT_OF_PLACE)


_OUT_OF_PLACE = frozenset({"and_", "or_", "not_", "is_", "requires_grad_"})
_IN_PLACE = frozenset(
    {"iadd", "isub", "imul", "itruediv", "imatmul", "ipow", "ifloordiv", "imod", "iand", "ior", "ixor"}
)


def woven(locator: Locator, sites: Sequence[CodeSite]) -> Woven:
    """The forward of a host with its sites in it.

    Raises:
        NoSourceError: where an expression of theirs cannot be wrapped; it says which, and why.
    """
    for site in sites:
        if site.unwoven:
            raise NoSourceError(site.unwoven)
    slots = Slots()
    wrappings: dict[str, dict[int, Wrapping]] = {}
    functions: dict[str, tuple[Any, FunctionType]] = {}
    entry = locator.entry_of(sites)
    for place, operands in _wanted(sites):
        found = locator.functions(place)
        for number, (step, slot) in enumerate(zip(place.steps, slots.path(place), strict=True)):
            functions[step.function] = found[number]
            inner = number < len(place.steps) - 1
            of_function = wrappings.setdefault(step.function, {})
            before = of_function.get(step.ordinal)
            of_function[step.ordinal] = Wrapping(slot, operands or inner or (before is not None and before.operands))
    rewritten: dict[str, Any] = {}
    arguments = _roots(sites)
    texts = []
    replaced = inner_forward = None
    for name, (outer, function) in functions.items():
        source = locator.source(function)
        is_entry = function is entry
        ordered = tuple(sorted(wrappings[name].items()))
        made = _cached(source.function, ordered, arguments if is_entry else None, _Uncompared(source))
        texts.append((source.file, source.text, rewritten_text(source, wrappings[name]), source.first))
        if is_entry:
            replaced, inner_forward = function, made
        else:
            rewritten[name] = behind_decorators(outer, function, made)
    if replaced is None or inner_forward is None:
        raise NoSourceError("the forward itself has no part in the fusion")
    helpers: dict[Path, tuple[Helper, ...]] = {}
    for place, _ in _wanted(sites):
        path = slots.path(place)
        for number in range(len(place.steps) - 1):
            name = place.steps[number + 1].function
            outer = functions[name][0]
            helper = Helper(_plain(outer), _plain(rewritten[name]))
            known = helpers.get(path[: number + 1], ())
            if all(other.original is not helper.original for other in known):
                helpers[path[: number + 1]] = (*known, helper)
    forward = behind_decorators(locator.forward, replaced, inner_forward)
    table = table_of(sites, slots, helpers, False)
    by_super = any(_SUPER.search(after) for _, _, after, _ in texts)
    return Woven(replaced, inner_forward, forward, table, tuple(texts), tuple(_meanings(sites, slots)), by_super)


def _meanings(sites: Sequence[CodeSite], slots: Slots) -> Iterator[tuple[int, str, str]]:
    """What the number of each expression is for, for people: (number, site, "f", "g", "fusion", "reader" or "onward").

    "onward" are those that read what came out of the fusion, as it was.
    """
    for site in sites:
        sides = [
            (place, letter)
            for letter, end in (("f", site.f), ("g", site.g))
            for place in (end.maker, *(place for place, _ in end.also))
            if place is not None
        ]
        named = [*sides, (site.join, "fusion")]
        told = {place for place, _ in named}
        readers = {*site.f_readers, *site.g_readers}
        onward = set(site.onward) - readers
        rest = ((place, "onward" if place in onward else "reader") for place in site.places() if place not in told)
        for place, what in [*named, *rest]:
            for number in slots.path(place):  # a call on the way to a place is there for its sake
                yield number, site.name, what


def _plain(function: Any) -> Any:
    return getattr(function, "__func__", function)


class _Uncompared:
    """Hands a source to a cached function without being part of its key."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Uncompared)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=256)
def _cached(
    function: FunctionType,
    wrappings: tuple[tuple[int, Wrapping], ...],
    arguments: tuple[str, ...] | None,
    source: _Uncompared,
) -> FunctionType:
    """Layers of one class share one rewritten function, so that it is compiled once."""
    return weave(source.source, dict(wrappings), arguments)


def _wanted(sites: Sequence[CodeSite]) -> Iterator[tuple[Place, bool]]:
    """Every place, and whether its operands are looked at."""
    for site in sites:
        seen = {site.join, *site.f_readers, *site.g_readers, *site.onward}
        seen |= set(site.scatter.written) if site.scatter is not None else set()
        seen |= {end.layer[0] for end in (site.f, site.g) if end.layer is not None}
        seen |= {end.given[0] for end in (site.f, site.g) if end.given is not None}
        seen |= {end.at for end in (site.f, site.g) if end.at is not None}
        seen |= {*site.f.passing, *site.g.passing}
        for place in site.places():
            yield place, place in seen


def _roots(sites: Sequence[CodeSite]) -> tuple[str, ...]:
    """Parameters of the forward that hold a side or a mask."""
    names = [end.argument for site in sites for end in (site.f, site.g)]
    names += [mask.argument for site in sites for mask in site.masks if not mask.layer]
    names += [end.given[1] for site in sites for end in (site.f, site.g) if end.given is not None]
    return tuple(dict.fromkeys(name.split(".")[0] for name in names if name is not None))
