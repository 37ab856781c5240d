"""What happens at each place of a host, as a table that is made once and read in every call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._record import CodeSite, End

#: By site and side: for each number of steps, which output of the helper called there the side was (-1: none).
Returns = dict[tuple[str, str], dict[int, set[int]]]
#: A place while the forward runs: the slots of the calls on the way to it.
Path = tuple[int, ...]
ATTRIBUTE = "_regbn_host"


@dataclass(frozen=True)
class SiteTable:
    """The places of one site, by their paths."""

    site: CodeSite
    join: Path
    f_maker: Path | None
    g_maker: Path | None
    f_layer: Path | None
    g_layer: Path | None
    f_given: Path | None
    g_given: Path | None
    f_at: Path | None
    g_at: Path | None
    f_also: tuple[tuple[Path, int], ...]
    g_also: tuple[tuple[Path, int], ...]
    passing: tuple[Path, ...]
    f_readers: tuple[Path, ...]
    g_readers: tuple[Path, ...]
    written: tuple[Path, ...]
    onward: tuple[Path, ...]

    looped: bool  # whether each round of a loop makes both sides anew

    @property
    def name(self) -> str:
        return self.site.name

    def reading(self) -> tuple[Path, ...]:
        """The calls that may read a side."""
        return (self.join, *self.f_readers, *self.g_readers)

    def paths(self) -> list[Path]:
        """Every place that the site names."""
        ends = (
            self.f_maker,
            self.g_maker,
            self.f_layer,
            self.g_layer,
            self.f_given,
            self.g_given,
            self.f_at,
            self.g_at,
        )
        named = (*self.reading(), *self.written, *self.onward, *[path for path, _ in (*self.f_also, *self.g_also)])
        return [*named, *self.passing, *[path for path in ends if path is not None]]


@dataclass(frozen=True)
class Reading:
    """How a call reads a site: its `sides`, or what came out of its join (`onward`); or it is the `join`."""

    entry: SiteTable
    sides: bool
    join: bool
    onward: bool


@dataclass(frozen=True)
class Making:
    """A call that makes one side of a site, in one of its rounds or in each."""

    entry: SiteTable
    side: str
    end: End
    layer: Path | None
    given: Path | None
    output: int  # which tensor of what it returns


@dataclass(frozen=True)
class At:
    """What happens at one place."""

    takes: tuple[SiteTable, ...]  # sites of which the call's operands are a side
    readings: tuple[Reading, ...]
    scatters: tuple[SiteTable, ...]  # sites that the call writes into one another
    makings: tuple[Making, ...]
    passing: tuple[SiteTable, ...]  # sites of which it gives a side on, where it gets one
    lasting: tuple[SiteTable, ...]  # sites whose join it is, after which more positions of f may follow
    writing: bool  # whether it writes into its first operand
    stretch: bool  # whether it fills a stretch of what a scatter writes into
    given: bool  # whether what it is given tells two calls of one layer apart
    layer: bool  # whether the layer that it calls tells rounds apart
    counted: bool  # whether the number of the visit does


@dataclass(frozen=True)
class Helper:
    """A function of the user's that is called on the way to a place, and the rewritten one that is called instead."""

    original: Any
    rewritten: Any

    @property
    def of_objects(self) -> bool:
        """Whether it is what objects do that are called themselves."""
        return getattr(self.original, "__name__", "") == "__call__"


@dataclass(frozen=True)
class Table:
    """What every call of a host has in common: its sites, what happens at each place, and which helpers there are."""

    sites: tuple[SiteTable, ...]
    helpers: Mapping[Path, tuple[Helper, ...]]
    writing: frozenset[Path]  # calls that write into their first operand
    places: Mapping[Path, At]
    arguments: tuple[tuple[str, str, str], ...]  # (site, side, argument of the host that it is)

    def of_role(self, role: int) -> Table:
        return made_table(tuple(site for site in self.sites if site.site.role == role), self.helpers, self.writing)


def made_table(
    sites: tuple[SiteTable, ...], helpers: Mapping[Path, tuple[Helper, ...]], writing: frozenset[Path]
) -> Table:
    """The table of some sites of a host."""
    named = [path for entry in sites for path in entry.paths()]
    ends = [(entry.name, side, end) for entry in sites for side, end in (("f", entry.site.f), ("g", entry.site.g))]
    arguments = tuple((name, side, end.argument) for name, side, end in ends if end.argument is not None)
    places = {path: _at(path, sites, path in writing) for path in dict.fromkeys(named)}
    return Table(sites, helpers, writing, places, arguments)


def _at(path: Path, sites: tuple[SiteTable, ...], writing: bool) -> At:
    readings = tuple(
        Reading(entry, path in (*entry.f_readers, *entry.g_readers), path == entry.join, path in entry.onward)
        for entry in sites
        if path in entry.onward or (entry.site.scatter is None and path in entry.reading())
    )
    makings = []
    for entry in sites:
        for side, end, maker, layer, given, also in (
            ("f", entry.site.f, entry.f_maker, entry.f_layer, entry.f_given, entry.f_also),
            ("g", entry.site.g, entry.g_maker, entry.g_layer, entry.g_given, entry.g_also),
        ):
            if path == maker:
                makings.append(Making(entry, side, end, layer, given, end.output))
            # Other makers are known for making nothing else: each of their visits counts.
            makings += [Making(entry, side, End(), None, None, output) for other, output in also if path == other]
    return At(
        takes=tuple(entry for entry in sites if path in (entry.f_at, entry.g_at)),
        readings=readings,
        scatters=tuple(entry for entry in sites if entry.site.scatter is not None and path == entry.join),
        makings=tuple(makings),
        passing=tuple(entry for entry in sites if path in entry.passing),
        lasting=tuple(entry for entry in sites if path == entry.join and entry.site.onward),
        writing=writing,
        stretch=any(path in entry.written for entry in sites),
        given=any(path in (entry.f_given, entry.g_given) for entry in sites),
        layer=any(path in (entry.f_layer, entry.g_layer) for entry in sites),
        counted=any(making.end.turn >= 0 for making in makings),
    )
