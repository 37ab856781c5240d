"""What is known of the model and its example beside the fusion points: what a plan's checks and advice go by."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .._types import FusionPoint, Side


@dataclass(frozen=True)
class Facts:
    """Defaults mean that nobody looked."""

    references: tuple[str, ...] = ()  # all that a pair may name, "input:NAME" and "module:PATH", in order of the run
    batch: int | None = None  # samples in the user's example
    weights_seen: bool = False
    trained: str | None = None  # why the weights look trained; None: they look fresh, or nobody looked
    causal: frozenset[str] = frozenset()  # modalities whose positions are predicted one after the other


def with_causality(point: FusionPoint, facts: Facts) -> FusionPoint:
    """The point with its sides marked: causal or not."""
    sites = tuple(
        replace(site, sides=(mark_causal(site.sides[0], facts), mark_causal(site.sides[1], facts)))
        for site in point.sites
    )
    return replace(point, sites=sites)


def mark_causal(side: Side, facts: Facts) -> Side:
    """A side that still has the positions of a causal stream would show what comes later to what comes before."""
    return replace(side, causal=side.layout.sequence and bool(facts.causal & set(side.home)))
