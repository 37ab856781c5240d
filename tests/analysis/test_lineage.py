"""Homes, and what becomes of the parts of a concatenation and of the axes of scores."""

from __future__ import annotations

import pytest

from regbn_surgery._analysis._axes import Movement
from regbn_surgery._analysis._lineage import (
    NOBODY,
    Lineage,
    Segments,
    carry_axes,
    comparable,
    fuse,
    incomparable,
    union,
)
from regbn_surgery._analysis._parts import carry_segments

A, B, AB = frozenset("a"), frozenset("b"), frozenset("ab")


def pure(home: frozenset[str], **more: object) -> Lineage:
    return Lineage(home, home, **more)  # type: ignore[arg-type]


SEGMENTS = Segments(2, ((3, pure(A)), (5, pure(B))), meeting=0)
SHAPE = (2, 4, 8, 6)


def test_homes_are_sets() -> None:
    assert union([A, B, NOBODY]) == AB
    assert comparable(A, AB)
    assert comparable(NOBODY, A)
    assert not comparable(A, B)
    assert incomparable([A, AB, B])
    assert not incomparable([A, AB, NOBODY])
    assert not incomparable([])


def test_fusing_keeps_all_that_was_touched() -> None:
    fused = fuse([Lineage(AB, A, parametrised=True, origins=frozenset({1})), Lineage(B, B, origins=frozenset({2}))])
    assert (fused.touched, fused.home, fused.parametrised, fused.origins) == (AB, AB, True, frozenset({1, 2}))


@pytest.mark.parametrize(("low", "high", "home"), [(0, 3, A), (0, 2, A), (3, 8, B), (4, 5, B), (2, 4, AB), (0, 8, AB)])
def test_a_cut_has_the_home_of_the_parts_it_touches(low: int, high: int, home: frozenset[str]) -> None:
    assert SEGMENTS.cut(low, high).home == home
    assert SEGMENTS.size == 8


def test_parts_move_with_their_axis() -> None:
    moved = carry_segments(SEGMENTS, Movement(((2,), (0,), (1,), (3,)), frozenset()), SHAPE, (8, 2, 4, 6))
    assert moved is not None
    assert (moved.dim, [size for size, _ in moved.parts]) == (0, [3, 5])


def test_parts_grow_where_their_axis_is_merged_with_inner_ones() -> None:
    moved = carry_segments(SEGMENTS, Movement(((0,), (1,), (2, 3)), frozenset()), SHAPE, (2, 4, 48))
    assert moved is not None
    assert (moved.dim, [size for size, _ in moved.parts]) == (2, [18, 30])


def test_parts_of_a_split_axis_are_told_by_its_outermost_piece() -> None:
    even = Segments(2, ((2, pure(A)), (6, pure(B))), meeting=0)
    split = Movement(((0,), (1,), (), (2,), (2,), (3,)), frozenset())
    moved = carry_segments(even, split, SHAPE, (2, 4, 1, 4, 2, 6))
    assert moved is not None
    assert (moved.dim, [size for size, _ in moved.parts]) == (3, [1, 3])
    assert carry_segments(even, split, SHAPE, (2, 4, 1, 2, 4, 6)) is None, "the seam lies within a step"
    merged = carry_segments(even, Movement(((0,), (1,), (2,), (2, 3)), frozenset()), SHAPE, (2, 4, 4, 12))
    assert merged is not None
    assert (merged.dim, [size for size, _ in merged.parts]) == (2, [1, 3])


def test_parts_of_an_axis_that_is_folded_into_the_one_before_take_turns() -> None:
    folded = carry_segments(SEGMENTS, Movement(((0,), (1, 2), (3,)), frozenset()), SHAPE, (2, 32, 6))
    assert folded is not None
    assert (folded.dim, folded.rounds, folded.size) == (1, 4, 32)
    assert [folded.cut(low, low + 2).home for low in (0, 3, 8, 14, 2)] == [A, B, A, B, AB]
    assert [getattr(folded.every(first, 8), "home", None) for first in (0, 4, 11)] == [A, B, B]
    assert folded.every(0, 4) is None
    back = carry_segments(folded, Movement(((0,), (1,), (1,), (2,)), frozenset()), (2, 32, 6), (2, 4, 8, 6))
    assert back == SEGMENTS


@pytest.mark.parametrize(
    ("move", "result"),
    [
        (None, SHAPE),
        (Movement(((0,), (1,), (2,), (3,)), frozenset({2})), SHAPE),
        (Movement(((0,), (1,), (2,), (2,), (3,)), frozenset()), (2, 4, 2, 4, 6)),
        (Movement(((0,), (1,), (3,)), frozenset()), (2, 4, 6)),
    ],
    ids=["unknown", "mixed", "split", "gone"],
)
def test_parts_end_where_they_are_mixed(move: Movement | None, result: tuple[int, ...]) -> None:
    assert carry_segments(SEGMENTS, move, SHAPE, result) is None


SCORES = Lineage(AB, A, axes=(NOBODY, A, B), scores=0)


def test_axes_of_scores_move() -> None:
    moved = carry_axes(SCORES, Movement(((0,), (2,), (1,)), frozenset()))
    assert (moved.axes, moved.scores) == ((NOBODY, B, A), 0)
    assert carry_axes(SCORES, Movement(((0,), (1,), (2,)), frozenset({2}))).axes == (NOBODY, A, B), "a softmax"


def test_what_is_left_after_a_sum_belongs_to_whose_axis_is_left() -> None:
    left = carry_axes(SCORES, Movement(((0,), (2,)), frozenset()))
    assert (left.home, left.axes) == (B, None)


@pytest.mark.parametrize(
    "move",
    [
        None,
        Movement(((0,), (1,), ()), frozenset({2})),
        Movement(((0,),), frozenset()),
    ],
    ids=["unknown", "a Linear along positions", "all gone"],
)
def test_scores_whose_axes_are_lost_belong_to_all(move: Movement | None) -> None:
    found = carry_axes(SCORES, move)
    assert (found.home, found.axes, found.scores) == (AB, None, None)


def test_scores_laid_out_in_one_row_are_still_those_of_their_meeting() -> None:
    found = carry_axes(SCORES, Movement(((0,), (1, 2)), frozenset()))
    assert (found.home, found.axes, found.scores) == (AB, None, SCORES.scores)


def test_plain_forgets_the_shape() -> None:
    assert Lineage(AB, A, axes=(A, B), scores=1, segments=SEGMENTS).plain() == Lineage(AB, AB)
    assert pure(A, segments=SEGMENTS).plain() == pure(A)
    assert carry_axes(pure(A), None) == pure(A)
