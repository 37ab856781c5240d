"""What a tensor carries: which modalities reached it, to which stream it belongs, and whose its axes and halves are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ._axes import Movement, scale_of

Home = frozenset[str]
NOBODY: Home = frozenset()


def union(homes: Iterable[Home]) -> Home:
    return NOBODY.union(*homes)


def comparable(a: Home, b: Home) -> bool:
    return a <= b or b <= a


def incomparable(homes: Iterable[Home]) -> bool:
    """Whether any two of the homes are incomparable."""
    distinct = list(set(homes))
    return any(not comparable(a, b) for i, a in enumerate(distinct) for b in distinct[:i])


@dataclass(frozen=True)
class Segments:
    """The parts of a concatenation along `dim`, so that taking it apart again gives each part its own lineage.

    `meeting` is the concatenation itself, which counts as a fusion point once something mixes the parts; None on
    the batch axis, where parts stay apart by nature.
    """

    dim: int
    parts: tuple[tuple[int, Lineage], ...]
    meeting: int | None
    batch: bool = False

    @property
    def size(self) -> int:
        return sum(size for size, _ in self.parts)

    def within(self, low: int, high: int) -> list[tuple[int, Lineage]]:
        """How much of which parts lies between two places."""
        found, start = [], 0
        for size, lineage in self.parts:
            if start < high and start + size > low:
                found.append((min(start + size, high) - max(start, low), lineage))
            start += size
        return found

    def cut(self, low: int, high: int) -> Lineage:
        found = [lineage for _, lineage in self.within(low, high)]
        return found[0] if len(found) == 1 else fuse(found)


@dataclass(frozen=True)
class Lineage:
    """`touched`: all modalities that reached the tensor. `home`: the stream it belongs to.

    `axes` gives single axes a home of their own, for attention scores and outer sums; `scores` is the meeting that
    made them. `origins` are the meetings whose fused home this is: two streams of equal mixed home and different
    origins re-meet.
    """

    touched: Home
    home: Home
    axes: tuple[Home, ...] | None = None
    scores: int | None = None
    segments: Segments | None = None
    parametrised: bool = False
    origins: frozenset[int] = frozenset()

    def plain(self) -> Lineage:
        """Without anything that is bound to the tensor's shape; scores fall to all streams they hold."""
        home = self.home if self.axes is None else union((self.home, *self.axes))
        return replace(self, home=home, axes=None, scores=None, segments=None)


def fuse(lineages: Iterable[Lineage]) -> Lineage:
    """Several lineages as one stream."""
    many = list(lineages)
    return Lineage(
        touched=union(x.touched for x in many),
        home=union(x.home for x in many),
        parametrised=any(x.parametrised for x in many),
        origins=frozenset().union(*(x.origins for x in many)),
    )


def carry_axes(lineage: Lineage, move: Movement | None) -> Lineage:
    """Homes of single axes after `move`; an axis that is computed away or mixed with another's gives up its own."""
    if lineage.axes is None:
        return lineage
    collapsed = replace(lineage, home=union((lineage.home, *lineage.axes)), axes=None, scores=None)
    if move is None:
        return collapsed
    axes = []
    for source in move.source:
        homes = [lineage.axes[i] for i in source if lineage.axes[i]]
        if incomparable(homes):  # still the scores of that meeting, laid out otherwise: one softmax over all pairs
            return replace(collapsed, scores=lineage.scores)
        axes.append(union(homes))
    gone = {i for i, home in enumerate(lineage.axes) if home} - {i for source in move.source for i in source}
    if gone & move.mixed:  # a Linear along the positions of one stream turns them into features of the other
        return collapsed
    alive = {home for home in axes if home}
    if not alive:
        return collapsed
    if len(alive) == 1 and gone:  # the other stream's positions were summed away
        return replace(lineage, home=next(iter(alive)), axes=None, scores=None)
    return replace(lineage, axes=tuple(axes))


def carry_segments(
    segments: Segments, move: Movement | None, shape: tuple[int, ...], result: tuple[int, ...]
) -> Segments | None:
    """The concatenation's parts after `move` from `shape` to `result`, or None where the parts have been mixed."""
    if move is None or segments.dim in move.mixed:
        return None
    places = [i for i, source in enumerate(move.source) if segments.dim in source]
    # A view may split the axis. Whose a place is shows on the outermost part alone: `cat([a, b], 1).view(B, 2, C)`.
    while len(places) > 1 and result[places[0]] == 1:
        places.pop(0)
    if not places or any(axis < segments.dim and shape[axis] > 1 for axis in move.source[places[0]]):
        return None
    merged = scale_of(shape, tuple(axis for axis in move.source[places[-1]] if axis > segments.dim))
    block = scale_of(result, tuple(places[1:]))  # elements in one step along the outermost part
    if any(size * merged % block for size, _ in segments.parts):
        return None
    parts = tuple((size * merged // block, part) for size, part in segments.parts)
    return replace(segments, dim=places[0], parts=parts)
