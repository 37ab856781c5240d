"""Traced sizes are integers to everybody, and remember how they were computed."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regbn_surgery._trace._values import TracedInt, plain

from .replay import captured, make, run_graph

ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod]


class Writer:
    """Stands for a recorder: keeps (operation, operands) in place of nodes."""

    recording = True

    def on_leak(self) -> None:
        """What Python computes by a size is none of these tests'."""

    def number(self, op: Any, operands: tuple[Any, ...]) -> Any:
        return (op, *(x.node if isinstance(x, TracedInt) else x for x in operands))


def traced(value: int, name: str = "n") -> TracedInt:
    return TracedInt(value, lambda: name, Writer())  # type: ignore[arg-type, return-value]


def evaluate(node: Any, n: int) -> int:
    if isinstance(node, tuple):
        op, *operands = node
        return int(op(*(evaluate(x, n) for x in operands)))
    return n if node == "n" else node


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 50), st.sampled_from(ARITHMETIC), st.booleans())
def test_arithmetic_computes_now_and_remembers_for_later(
    now: int, other: int, later: int, op: Callable[[Any, Any], Any], swapped: bool
) -> None:
    n = traced(now)
    result = op(other, n) if swapped else op(n, other)
    assert type(result) is TracedInt
    assert int(result) == (op(other, now) if swapped else op(now, other))
    assert evaluate(result.node, later) == (op(other, later) if swapped else op(later, other))
    twice = (n + n) * result - result // 1
    assert evaluate(twice.node, later) == 2 * later * evaluate(result.node, later) - evaluate(result.node, later)


def test_negation_sums_and_products_are_traced() -> None:
    n = traced(4)
    assert (int(-n), evaluate((-n).node, 7)) == (-4, -7)
    total, product = sum([n, 1, n]), math.prod([n, 3])
    assert (total, evaluate(total.node, 7)) == (9, 15)
    assert (product, evaluate(product.node, 7)) == (12, 21)


@pytest.mark.parametrize("op", ARITHMETIC)
@pytest.mark.parametrize("other", [2.5, 0.5])
def test_floats_are_computed_as_ever(op: Callable[[Any, Any], Any], other: float) -> None:
    n = traced(7)
    for result, expected in ((op(n, other), op(7, other)), (op(other, n), op(other, 7))):
        assert type(result) is float
        assert result == expected
    assert n / 2 == 3.5
    assert n**2 == 49


def test_it_is_an_integer_to_everybody() -> None:
    n = traced(4)
    assert n == 4
    assert hash(n) == hash(4)
    assert n < 5
    assert [10, 20, 30, 40, 50][n] == 50
    assert list(range(n)) == [0, 1, 2, 3]
    assert {4: "x"}[n] == "x"
    assert f"{n}" == "4"
    assert isinstance(n, int)
    with pytest.raises(TypeError):
        n + "x"  # type: ignore[operator]
    with pytest.raises(ZeroDivisionError):
        n // 0
    assert n * "ab" == "abababab"  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_copies_and_pickles_are_plain(copied: Callable[[Any], Any]) -> None:
    n = copied(traced(4))
    assert type(n) is int
    assert n == 4
    assert type(copied([traced(4)])[0]) in (int, TracedInt)


def test_after_the_recording_it_computes_plainly() -> None:
    n = traced(4)
    n.recorder.recording = False
    assert type(n + 1) is int


def test_plain_takes_the_trace_off_everything_torch_is_given() -> None:
    n = traced(4)
    value = {"a": [n, (n, torch.Size([n]))], "b": slice(n, None, n), "c": "x"}
    assert plain(value) == {"a": [4, (4, torch.Size([4]))], "b": slice(4, None, 4), "c": "x"}
    found: list[type] = []

    def look(x: Any) -> None:
        for item in x if isinstance(x, list | tuple) else x.values() if isinstance(x, dict) else ():
            look(item)
        if isinstance(x, slice):
            found.extend([type(x.start), type(x.step)])
        if isinstance(x, int):
            found.append(type(x))

    look(plain(value))
    assert set(found) == {int}
    assert len(found) == 5


def test_a_size_kept_from_one_capture_is_a_number_in_the_next() -> None:
    kept: list[Any] = []

    def forward(self: Any, a: Tensor) -> Tensor:
        kept.append(a.shape[1])
        return a * kept[0] + a.shape[0]

    module = make(forward)
    captured(module, torch.ones(2, 3), strict=True)
    trace = captured(module, torch.ones(5, 7), strict=True)
    assert torch.equal(run_graph(module, trace, torch.ones(4, 7)), torch.full((4, 7), 7.0))  # 3 * 1 + 4
