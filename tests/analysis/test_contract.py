"""A matrix product belongs to whose axes survive it, however it is spelled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reading import homes, inputs, normal, told

QV = inputs(a=(5, 8), b=(7, 8))

SCORES = {
    "matmul": lambda q, k: torch.matmul(q, k.transpose(1, 2)),
    "@": lambda q, k: q @ k.mT,
    "bmm": lambda q, k: torch.bmm(q, k.transpose(-1, -2)),
    "einsum": lambda q, k: torch.einsum("bqd,bkd->bqk", q, k),
    "einsum, other letters": lambda q, k: torch.einsum("nid, njd -> nij", q, k),
    "einsum, ellipsis": lambda q, k: torch.einsum("...qd,...kd->...qk", q, k),
    "einsum, swapped": lambda q, k: torch.einsum("bkd,bqd->bqk", k, q),
    "baddbmm": lambda q, k: torch.baddbmm(torch.zeros(1, 1, 1), q, k.mT),
    "broadcast": lambda q, k: (q[:, :, None] * k[:, None]).sum(-1),
}  # fmt: skip
WEIGHED = {
    "matmul": lambda w, v: w @ v,
    "bmm": torch.bmm,
    "values first": lambda w, v: (v.mT @ w.mT).mT,
    "bmm(v, w)": lambda w, v: torch.bmm(v.transpose(1, 2), w.transpose(1, 2)).transpose(1, 2),
    "einsum": lambda w, v: torch.einsum("bqk,bkd->bqd", w, v),
    "broadcast": lambda w, v: (w[..., None] * v[:, None]).sum(2),
}  # fmt: skip


@pytest.mark.parametrize("weighed", WEIGHED)
@pytest.mark.parametrize("scores", SCORES)
def test_attention_is_one_point_and_belongs_to_the_query(scores: str, weighed: str) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return WEIGHED[weighed](SCORES[scores](a, b).softmax(-1), b)

    assert told(forward, QV) == [("attention", {"a", "b"})]
    assert homes(forward, QV) == ["a"]


def test_keys_weighed_the_other_way_belong_to_the_keys() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bqk,bqd->bkd", SCORES["@"](a, b).softmax(1), a)

    assert homes(forward, QV) == ["b"]


@pytest.mark.parametrize(
    "spelling",
    [lambda x, y: x.mT @ y, lambda x, y: torch.einsum("bld,blc->bdc", x, y), lambda x, y: torch.bmm(x.mT, y)],
)
def test_a_product_over_positions_belongs_to_both(spelling: Any) -> None:
    example = inputs(a=(5, 8), b=(5, 3))
    assert told(lambda self, a, b: spelling(a, b).flatten(1), example) == [("matmul", {"a", "b"})]
    assert homes(lambda self, a, b: spelling(a, b).flatten(1), example) == ["a+b"]


@pytest.mark.parametrize("spelling", [lambda x, w: x @ w, lambda x, w: torch.einsum("bld,dc->blc", x, w)])
def test_a_product_with_a_parameter_meets_nobody(spelling: Any) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return spelling(a, self.weight)

    assert told(forward, QV, weight=torch.nn.Parameter(torch.ones(8, 2))) == []
    assert homes(forward, QV, weight=torch.nn.Parameter(torch.ones(8, 2))) == ["a"]


@pytest.mark.parametrize(
    "spelling",
    [lambda a, b: a @ b.T, lambda a, b: torch.einsum("id,jd->ij", a, b), lambda a, b: torch.mm(a, b.t()) * 3],
)
def test_samples_against_samples_is_similarity(spelling: Any) -> None:
    example = inputs(a=(8,), b=(8,))
    assert told(lambda self, a, b: spelling(a, b), example) == [("similarity", {"a", "b"})]


def test_two_attentions_in_a_row_are_two_points() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        a = WEIGHED["@" if "@" in WEIGHED else "matmul"](SCORES["@"](a, b).softmax(-1), b) + a
        return WEIGHED["matmul"](SCORES["bmm"](a, b).softmax(-1), b)

    assert told(forward, QV) == [("attention", {"a", "b"})] * 2
    assert homes(forward, QV) == ["a"]


def test_a_residual_around_linear_attention_belongs_to_the_reader() -> None:
    """`q @ (kᵀ v)` looks like scores of positions against features; the sum with the reader says that it is not."""

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return a + a.softmax(-1) @ (b.softmax(1).mT @ b)

    assert told(forward, QV) == [("matmul", {"a", "b"})]
    assert homes(forward, QV) == ["a"]


def test_one_row_of_weights_is_nobodys_position() -> None:
    """`bmm(weights[:, None], values)` weighs values as `(weights[..., None] * values).sum(1)` does."""

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        pairs = torch.cat([a.mean(1, keepdim=True).expand_as(b), b], -1) @ self.w
        return (pairs.softmax(1).mT @ b)[:, 0]

    example = {"a": normal(4, 5, 8), "b": normal(4, 7, 8)}
    assert told(forward, example, w=nn.Parameter(torch.ones(16, 1))) == [("concat", {"a", "b"})]
    assert homes(forward, example, w=nn.Parameter(torch.ones(16, 1))) == ["b"]


def test_scores_that_are_scaled_are_no_attention() -> None:
    """OWL-ViT's class head shifts and scales similarities by numbers of its own for every query."""

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        scores = torch.einsum("bqd,bkd->bqk", self.m(a), b)
        return (scores + a.mean(-1, keepdim=True)) * a.std(-1, keepdim=True)

    assert told(forward, QV, m=nn.Linear(8, 8)) == [("matmul", {"a", "b"})]


@pytest.mark.parametrize(
    "unit",
    [
        lambda x: F.normalize(x, dim=-1),
        lambda x: x / x.norm(dim=-1, keepdim=True),
        lambda x: x / (torch.linalg.norm(x, dim=-1, keepdim=True) + 1e-6),
        lambda x: 10.0 * (x / x.norm(p=2, dim=-1, keepdim=True).clamp(min=1e-6)),
    ],
)
def test_a_product_of_unit_vectors_is_a_similarity(unit: Any) -> None:
    assert told(lambda self, a, b: unit(a) @ unit(b).mT, QV) == [("similarity", {"a", "b"})]
    assert told(lambda self, a, b: unit(a) @ b.mT, QV) == [("matmul", {"a", "b"})]


def test_attention_by_cosine_is_attention() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return (10 * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT).softmax(-1) @ b

    assert told(forward, QV) == [("attention", {"a", "b"})]
    assert homes(forward, QV) == ["a"]


@pytest.mark.parametrize("over", ["all pairs", "rows"])
def test_both_streams_weighed_at_once_are_one_attention(over: str) -> None:
    """A bilinear attention network's pooling, with one softmax over all pairs or one for each row."""

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        scores = torch.einsum("bqd,bkd->bqk", a, b)
        flat = scores.flatten(1).softmax(1).view_as(scores)
        return torch.einsum("bqd,bqk,bkd->bd", a, flat if over == "all pairs" else scores.softmax(-1), b)

    assert told(forward, QV) == [("attention", {"a", "b"})]
    assert homes(forward, QV) == ["a+b"]


def test_attention_by_distance_is_attention() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return (-torch.cdist(a, b)).softmax(-1) @ b

    assert told(forward, QV) == [("attention", {"a", "b"})]
    assert homes(forward, QV) == ["a"]
    assert told(lambda self, a, b: torch.cdist(a, b), QV) == [("similarity", {"a", "b"})]


INTO_A_BUFFER = {
    "bmm": lambda q, k, out: torch.bmm(q, k, out=out),
    "matmul": lambda q, k, out: torch.matmul(q, k, out=out),
    "baddbmm": lambda q, k, out: torch.baddbmm(torch.zeros(1, 1, 1), q, k, out=out),
}


@pytest.mark.parametrize("product", INTO_A_BUFFER)
def test_a_product_into_a_buffer_is_what_it_is_without_one(product: str) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():  # torch refuses `out` where gradients are wanted
            scores = INTO_A_BUFFER[product](a, b.mT, torch.empty(a.shape[0], 5, 7))
            return torch.bmm(scores.softmax(-1), b, out=torch.empty(a.shape[0], 5, 8))

    assert told(forward, QV) == [("attention", {"a", "b"})]
    assert homes(forward, QV) == ["a"]
