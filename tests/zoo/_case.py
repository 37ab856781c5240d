"""What a zoo case is: a model, its inputs, and what a careful reader of its source says happens where.

The truth in these records is written by hand, from the model's source and the project's definitions of a fusion
point; nothing here may be produced by running the library, or the zoo would only prove that it agrees with itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

Check = Literal["points", "levels", "sites", "surgery"]
Home = frozenset[str]


@dataclass(frozen=True)
class Side:
    """One half of a site as RegBN sees it: `[batch, channels, *layer_dim]`."""

    home: Home
    channels: int
    layer_dim: tuple[int, ...] = ()


@dataclass(frozen=True)
class Site:
    """A pair of sides, written as (f, g) in the direction that the case's rules choose."""

    f: Side
    g: Side
    reduce: Literal["flatten", "mean"]


@dataclass(frozen=True)
class Point:
    """One expected fusion point.

    `calls` is how many calls of the owner's own source belong to it (2 for the QK and PV products of one
    attention, or for FiLM's product and sum); `level` is None where the definitions leave it open.
    """

    owner: str
    kind: str
    meets: frozenset[Home]
    level: str | None = "late"
    calls: int = 1
    sites: tuple[Site, ...] = ()
    sites_known: bool = True  # False: where RegBN would go is left open here
    selected: bool = True  # whether the rules of the case put RegBN here

    @property
    def key(self) -> tuple[str, str, frozenset[Home]]:
        return self.owner, self.kind, self.meets


@dataclass(frozen=True)
class ZooCase:
    """A model with its hand-written truth.

    `normalize` and `against` give the direction of the default rules; `rules` replaces these. `pair_sites` are the
    sites that a `pair` rule asks for, away from any point. `pending` says which checks the library cannot pass yet.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    modalities: Mapping[str, Sequence[str]]
    points: tuple[Point, ...]
    normalize: str
    against: str | None = None
    rules: Sequence[Mapping[str, Any]] | None = None
    pair_sites: tuple[Site, ...] = ()
    stage: int = 2
    batches: tuple[int, ...] = (2, 3)
    pending: Mapping[Check, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def model(self) -> nn.Module:
        """A fresh model, the same one every time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.build()

    def example(self, batch: int) -> Any:
        """Example inputs at a batch size: the same ones every time, without touching the caller's random state."""
        with torch.random.fork_rng():
            torch.manual_seed(1000 + batch)
            return self.inputs(batch)

    def rules_dict(self) -> dict[str, Any]:
        """Rules that put RegBN at every expected point: one rule for each kind, unless the case has its own."""
        rules = self.rules
        if rules is None:
            kinds = sorted({point.kind for point in self.points if point.selected})
            direction = {"normalize": self.normalize}
            if self.against is not None:
                direction["against"] = self.against
            rules = [{"id": kind, "match": {"kind": kind}, **direction} for kind in kinds]
        modalities = {name: list(inputs) for name, inputs in self.modalities.items()}
        return {"version": 1, "modalities": modalities, "rules": [dict(rule) for rule in rules]}

    def expected_sizes(self) -> Counter[tuple[int, tuple[int, ...], int, tuple[int, ...]]]:
        """How often each RegBN (f channels, f layer_dim, g channels, g layer_dim) must go in."""
        points = (site for point in self.points if point.selected for site in point.sites)
        return Counter(
            (site.f.channels, site.f.layer_dim, site.g.channels, site.g.layer_dim)
            for site in (*self.pair_sites, *points)
        )


def home(names: str) -> Home:
    """`home("rgb+depth")` is the stream in which rgb and depth are already fused."""
    return frozenset(names.split("+"))


def side(names: str, channels: int, *layer_dim: int) -> Side:
    return Side(home(names), channels, layer_dim)


def flat(f: Side, g: Side) -> Site:
    """A site whose positions all count: vectors and fixed-size maps."""
    return Site(f, g, "flatten")


def pooled(f: Side, g: Side) -> Site:
    """A site that is fitted on the means over the positions: anything with a sequence axis."""
    return Site(f, g, "mean")


def point(owner: str, kind: str, *sites: Site, meets: Sequence[str] | None = None, **more: Any) -> Point:
    """A fusion point that meets the homes of its sites, unless `meets` says otherwise."""
    if meets is None:
        homes = frozenset(half.home for site in sites for half in (site.f, site.g))
    else:
        homes = frozenset(home(names) for names in meets)
    return Point(owner, kind, homes, sites=sites, **more)


def tokens(batch: int, length: int, vocabulary: int = 100) -> torch.Tensor:
    """Token ids that avoid the first three, which models tend to reserve."""
    return torch.randint(3, vocabulary, (batch, length))
