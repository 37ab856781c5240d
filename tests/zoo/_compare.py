"""What the library found, held against the hand-written truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from regbn_surgery import RegBN

from ._case import Home, Site, ZooCase

SideKey = tuple[Home, "int | None", tuple[int, ...]]


@dataclass(frozen=True)
class Difference:
    """Two counted collections: what was expected and not found, what was found and not expected."""

    missed: Counter[Any]
    extra: Counter[Any]

    @classmethod
    def between(cls, expected: Counter[Any], found: Counter[Any]) -> Difference:
        return cls(expected - found, found - expected)

    def __bool__(self) -> bool:
        return bool(self.missed or self.extra)

    def __str__(self) -> str:
        return f"missed:\n{_listing(self.missed)}\nextra:\n{_listing(self.extra)}"


def points(case: ZooCase, inspection: Any) -> Difference:
    """Fusion points by owner, kind and the homes that meet."""
    found = Counter(point_key(point) for point in inspection.fusion_points)
    return Difference.between(Counter(point.key for point in case.points), found)


def levels(case: ZooCase, inspection: Any) -> Difference:
    """The levels of the points whose level the truth names. Points of one key may come in any order."""
    named = {point.key for point in case.points if point.level is not None}
    expected = Counter((point.key, point.level) for point in case.points if point.key in named)
    found = Counter((point_key(point), point.level) for point in inspection.fusion_points if point_key(point) in named)
    return Difference.between(expected, found)


def sites(case: ZooCase, inspection: Any) -> Difference:
    """Where RegBN would go at the points whose sites the truth knows: homes, channels, sizes and `reduce`."""
    known = {point.key for point in case.points if point.sites_known}
    expected = Counter(
        (point.key, expected_site_key(site)) for point in case.points if point.key in known for site in point.sites
    )
    found = Counter(
        (point_key(point), found_site_key(site))
        for point in inspection.fusion_points
        if point_key(point) in known
        for site in point.sites
    )
    return Difference.between(expected, found)


def modules(case: ZooCase, rewritten: nn.Module) -> Difference:
    """The RegBN modules that went in, by their sizes: f channels, f layer_dim, g channels, g layer_dim."""
    found = Counter(
        (m.f_num_channels, tuple(m.f_layer_dim), m.g_num_channels, tuple(m.g_layer_dim))
        for m in regbns(rewritten).values()
    )
    return Difference.between(case.expected_sizes(), found)


def regbns(model: nn.Module) -> Mapping[str, RegBN]:
    return {name: module for name, module in model.named_modules() if isinstance(module, RegBN)}


def point_key(point: Any) -> tuple[str, str, frozenset[Home]]:
    return point.owner, point.kind, frozenset(frozenset(names) for names in point.homes)


def expected_site_key(site: Site) -> Any:
    f, g = ((half.home, half.channels, half.layer_dim) for half in (site.f, site.g))
    return site_key(f, g, site.reduce)


def found_site_key(site: Any) -> Any:
    f, g = (
        (frozenset(half.home), half.channels, () if site.reduce == "mean" else half.spatial_shape)
        for half in site.sides
    )
    return site_key(f, g, site.reduce)


def site_key(f: SideKey, g: SideKey, reduce: str) -> Any:
    """Which side is f is the rules' business: sites are compared as unordered pairs."""
    return frozenset(Counter([f, g]).items()), reduce


def _listing(counter: Counter[Any]) -> str:
    return "\n".join(f"  {count} x {_plain(key)}" for key, count in counter.items()) or "  nothing"


def _plain(value: Any) -> str:
    """Nested keys without the noise of their types."""
    if isinstance(value, frozenset):
        return "{" + ", ".join(sorted(_plain(item) for item in value)) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(_plain(item) for item in value) + ")"
    return repr(value) if value == "" else str(value)
