"""What a tensor carries: which modalities reached it, to which stream it belongs, and whose its axes and halves are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from ._axes import Movement

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

    `meeting` is the concatenation itself, which counts as a fusion point once something mixes the parts; None where no
    call has made it. `samples`: whole samples stand behind one another. While their axis is the one that counts
    samples (`batch`), parts stay apart by nature. The parts come `rounds` times, as those of a stack that was folded
    into the batch from behind (`[B, 2, C]` as `[B * 2, C]`). `fresh`: nothing was done to them since.
    """

    dim: int
    parts: tuple[tuple[int, Lineage], ...]
    meeting: int | None
    batch: bool = False
    samples: bool = False
    rounds: int = 1
    fresh: bool = True

    @property
    def period(self) -> int:
        return sum(size for size, _ in self.parts)

    @property
    def size(self) -> int:
        return self.period * self.rounds

    def within(self, low: int, high: int) -> list[tuple[int, Lineage]]:
        """How much of which parts lies between two places."""
        found, start = [], 0
        for size, lineage in self.parts * self.rounds:
            if start < high and start + size > low:
                found.append((min(start + size, high) - max(start, low), lineage))
            start += size
        return found

    def cut(self, low: int, high: int) -> Lineage:
        found = [lineage for _, lineage in self.within(low, high)]
        return found[0] if len(found) == 1 else fuse(found)

    def every(self, first: int, step: int) -> Lineage | None:
        """Whose the places `first`, `first + step`, ... are; None where they are of more than one part."""
        if step % self.period:
            return None
        first %= self.period
        return self.cut(first, first + 1)


@dataclass(frozen=True)
class Piece:
    """A stretch of the concatenation `meeting`, from 0 to 1 along its axis."""

    meeting: int
    low: Fraction = Fraction(0)
    high: Fraction = Fraction(1)

    def part(self, low: Fraction, high: Fraction) -> Piece:
        """A stretch of this one."""
        size = self.high - self.low
        return replace(self, low=self.low + low * size, high=self.low + high * size)


def whole_again(pieces: Sequence[Piece | None]) -> int | None:
    """The concatenation that the pieces are, in this order and all of it; None where they are none."""
    place, first = Fraction(0), pieces[0]
    for piece in pieces:
        if piece is None or first is None or (piece.meeting, piece.low) != (first.meeting, place):
            return None
        place = piece.high
    return first.meeting if first is not None and place == 1 else None


@dataclass(frozen=True)
class Lineage:
    """`touched`: all modalities that reached the tensor. `home`: the stream it belongs to.

    `axes` gives single axes a home of their own, for attention scores and outer sums; `scores` is the meeting that
    made them. `origins` are the meetings whose fused home this is: two streams of equal mixed home and different
    origins re-meet. `number`: a loss or another single number, and what is computed from such alone.
    `given`: whose values an attention has put in the place of this stream's own, until a residual connection adds
    these again; `pooled`: its positions are gone since. `codes`: whole numbers
    that were computed from features, which stand for content where a table is read by them, and else for places.
    `piece`: of which concatenation this is a stretch, and nothing else.
    """

    touched: Home
    home: Home
    axes: tuple[Home, ...] | None = None
    scores: int | None = None
    segments: Segments | None = None
    parametrised: bool = False
    origins: frozenset[int] = frozenset()
    number: bool = False
    given: Home = NOBODY
    pooled: bool = False
    codes: bool = False
    piece: Piece | None = None

    def plain(self) -> Lineage:
        """Without anything that is bound to the tensor's shape; scores fall to all streams they hold."""
        home = self.home if self.axes is None else union((self.home, *self.axes))
        return replace(self, home=home, axes=None, scores=None, segments=None)

    def after_layers(self, parametrised: bool) -> Lineage:
        """The same behind a layer, if that has parameters."""
        return replace(self, parametrised=True) if parametrised and not self.parametrised else self

    def as_number(self) -> Lineage:
        return self if self.number else replace(self, number=True)

    def changed(self) -> Lineage:
        """The same once something was done to the values."""
        if self.piece is None and (self.segments is None or not self.segments.fresh):
            return self
        segments = None if self.segments is None else replace(self.segments, fresh=False)
        return replace(self, piece=None, segments=segments)

    def giving(self, values: Home) -> Lineage:
        """The result of an attention to `values`, which are not of the stream that asked."""
        return replace(self, given=values if not comparable(self.home, values) else NOBODY, pooled=False)

    def as_given(self) -> Lineage:
        return replace(self, home=self.given, given=NOBODY)

    def settled(self, last: int) -> Lineage:
        """With all meetings from `last` on taken for that one."""
        segments = self.segments
        if segments is not None:
            meeting = None if segments.meeting is None else min(segments.meeting, last)
            parts = tuple((size, part.settled(last)) for size, part in segments.parts)
            segments = replace(segments, meeting=meeting, parts=parts)
        scores = None if self.scores is None else min(self.scores, last)
        piece = None if self.piece is None else replace(self.piece, meeting=min(self.piece.meeting, last))
        origins = frozenset(min(i, last) for i in self.origins)
        return replace(self, origins=origins, scores=scores, segments=segments, piece=piece)


def fuse(lineages: Iterable[Lineage]) -> Lineage:
    """Several lineages as one stream."""
    many = list(lineages)
    given = {x.given for x in many}
    return Lineage(
        touched=union(x.touched for x in many),
        home=union(x.home for x in many),
        parametrised=any(x.parametrised for x in many),
        origins=frozenset().union(*(x.origins for x in many)),
        number=all(x.number for x in many),
        given=given.pop() if len(given) == 1 else NOBODY,
        pooled=all(x.pooled for x in many),
        codes=any(x.codes for x in many),
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
