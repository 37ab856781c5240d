"""The parts of a concatenation: where they are after a call, and which parts of several tensors go together.

Streams that are stacked along the batch go through a shared trunk one beside the other: what a call does to the stack
it does to each part, so that each part is followed by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from ._axes import Movement, scale_of
from ._lineage import Lineage, Segments


def carry_segments(
    segments: Segments, move: Movement | None, shape: tuple[int, ...], result: tuple[int, ...]
) -> Segments | None:
    """The concatenation's parts after `move` from `shape` to `result`, or None where the parts have been mixed."""
    if move is None or segments.dim in move.mixed:
        return None
    places = [i for i, source in enumerate(move.source) if segments.dim in source]
    if not places:
        return None
    # A view may merge the axis with others: those before it repeat the parts, those behind it widen them.
    outer = scale_of(shape, tuple(axis for axis in move.source[places[0]] if axis < segments.dim))
    inner = scale_of(shape, tuple(axis for axis in move.source[places[-1]] if axis > segments.dim))
    if outer * segments.size * inner != scale_of(result, tuple(places)):
        return None
    period = segments.period * inner
    for number, place in enumerate(places):  # or split it: the parts show where no seam lies within a step
        step = scale_of(result, tuple(places[number + 1 :]))
        reach = result[place] * step
        if reach % period == 0 and all(size * inner % step == 0 for size, _ in segments.parts):
            parts = tuple((size * inner // step, part) for size, part in segments.parts)
            return replace(segments, dim=place, parts=parts, rounds=reach // period)
    return None


@dataclass(frozen=True)
class Shared:
    """One part of several stacks: its share of the axis, and its lineage in each (None where that is no stack)."""

    share: Fraction
    lineages: tuple[Lineage | None, ...]


def shared_parts(stacks: Sequence[Segments | None]) -> list[Shared] | None:
    """The parts that the stacks have in common, cut where any of them is; None where they take turns differently."""
    found = [stack for stack in stacks if stack is not None]
    if len({stack.rounds for stack in found}) != 1:
        return None
    seams = sorted({seam for stack in found for seam in _seams(stack)})
    parts = []
    for low, high in zip([Fraction(0), *seams], seams, strict=False):
        parts.append(Shared(high - low, tuple(None if s is None else _part_at(s, low) for s in stacks)))
    return parts


def _seams(stack: Segments) -> list[Fraction]:
    ends, place = [], 0
    for size, _ in stack.parts:
        place += size
        ends.append(Fraction(place, stack.period))
    return ends


def _part_at(stack: Segments, place: Fraction) -> Lineage:
    return next(part for end, (_, part) in zip(_seams(stack), stack.parts, strict=True) if place < end)


def sized(stack: Segments, parts: Sequence[tuple[Fraction, Lineage]]) -> Segments | None:
    """The stack with these parts, by their shares; None where a share is no whole number of places."""
    if any((share * stack.period).denominator != 1 for share, _ in parts):
        return None
    return replace(stack, parts=tuple((int(share * stack.period), part) for share, part in parts))


def alike(many: Sequence[Segments | None]) -> Segments | None:
    """The first, where all are the same concatenation with their parts at the same places."""
    first = many[0]
    if first is None or any(each is None or _outline(each) != _outline(first) for each in many):
        return None
    return first


def _outline(segments: Segments) -> tuple[object, ...]:
    return segments.dim, segments.meeting, segments.rounds, [size for size, _ in segments.parts]


def inlined(size: int, lineage: Lineage, dim: int) -> list[tuple[int, Lineage]]:
    """The parts of one operand of a concatenation of whole samples: its own, where it is such a stack itself."""
    own = lineage.segments
    if own is None or not own.batch or own.dim != dim or size % own.size:
        return [(size, lineage)]
    return [(n * size // own.size, part) for n, part in own.parts * own.rounds]
