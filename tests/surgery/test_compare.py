"""Differences between two outputs are found wherever they are, and said in words."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch

from regbn_surgery._surgery._compare import difference


class Out(NamedTuple):
    logits: Any
    hidden: Any = None


@dataclasses.dataclass
class Data:
    logits: Any


X = torch.tensor([1.0, float("nan"), 3.0])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (X, X.clone()),
        (X, X + 1e-7),
        ((X, None, 3, "x"), (X, None, 3, "x")),
        ({"a": [X]}, {"a": [X]}),
        (Out(X), Out(X)),
        (Data(X), Data(X)),
        (float("nan"), float("nan")),
        (torch.tensor([1, 2]), torch.tensor([1, 2])),
        (torch.zeros(2, device="meta"), torch.ones(2, device="meta")),
        (object(), object()),
    ],
)
def test_equal_enough(a: Any, b: Any) -> None:
    assert difference(a, b) is None


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        pytest.param(X, X + 0.5, "the output differs by up to 0.5"),
        (X[::2], X[::2] + 0.5, "the output differs by up to 0.5"),
        (X, torch.tensor([1.0, 2.0, 3.0]), "the output differs by up to"),
        (torch.ones(2), torch.full((2,), 1.0001), "differs by up to 0.0001"),
        (torch.zeros(2), torch.full((2,), 1e-5), "differs by up to 1e-05"),
        ({"a": [X, X]}, {"a": [X, X * 2]}, "output `a.1` differs by up to"),
        (X, X[:2], r"is torch.float32 \[2\] instead of torch.float32 \[3\]"),
        (X, X.double(), r"is torch.float64 \[3\] instead of torch.float32 \[3\]"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "holds other values"),
        (torch.tensor([True]), torch.tensor([False]), "holds other values"),
        ({"a": X}, {"b": X}, r"another structure \(a, b\)"),
        ((X,), (X, X), r"another structure \(1\)"),
        ({"a": X, "b": X}, {"b": X, "a": X}, "other order"),
        (Out(X, None), Out(X, X), "output `hidden` is Tensor instead of NoneType"),
        (Out(X, X), Out(X, None), "output `hidden` is NoneType instead of Tensor"),
        ((X, 3), (X, 4), "output `1` is 4 instead of 3"),
        ((X, True), (X, None), "output `1` is None instead of True"),
    ],
)
def test_a_difference_is_told_with_its_place(a: Any, b: Any, words: str) -> None:
    found = difference(a, b)
    assert found is not None
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(found)
