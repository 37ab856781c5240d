"""What comes out of an attention is made of the values' stream, too, until a residual connection adds what asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regbn_surgery

from .reading import inputs, make, told

AB = inputs(a=(6, 8), b=(9, 8))
Attend = Callable[[Any, Tensor, Tensor], Tensor]


def heads(x: Tensor) -> Tensor:
    return x.view(len(x), -1, 2, 4).transpose(1, 2)


def by_hand(self: Any, x: Tensor, y: Tensor) -> Tensor:
    scores = self.q(x) @ self.k(y).transpose(1, 2) / math.sqrt(8)
    return self.o(scores.softmax(-1) @ self.v(y))


def by_sdpa(self: Any, x: Tensor, y: Tensor) -> Tensor:
    seen = F.scaled_dot_product_attention(heads(self.q(x)), heads(self.k(y)), heads(self.v(y)))
    return self.o(seen.transpose(1, 2).flatten(2))


def by_rows(self: Any, x: Tensor, y: Tensor) -> Tensor:
    weights = torch.einsum("bqc,bkc->bqk", self.q(x), self.k(y)).softmax(-1)
    return (weights[..., None] * self.v(y)[:, None]).sum(2)


ATTEND: dict[str, Attend] = {
    "MultiheadAttention": lambda self, x, y: self.attention(x, y, y)[0],
    "by hand": by_hand,
    "scaled_dot_product_attention": by_sdpa,
    "rows": by_rows,
}
JOINS: dict[str, tuple[str, Callable[[Any, Tensor, Tensor], Tensor]]] = {
    "pooled": ("concat", lambda self, x, y: torch.cat([x.mean(1), y.mean(1)], 1)),
    "features": ("concat", lambda self, x, y: torch.cat([x, y], -1)),
    "tokens": ("concat", lambda self, x, y: torch.cat([x, y], 1)),
    "first ones": ("concat", lambda self, x, y: torch.cat([x[:, 0], y[:, 0]], 1)),
    "sum of pooled": ("sum", lambda self, x, y: x.mean(1) + y.mean(1)),
    "product of pooled": ("product", lambda self, x, y: x.amax(1) * y.amax(1)),
    "bilinear": ("bilinear", lambda self, x, y: self.bilinear(x.mean(1), y.mean(1))),
    "outer": ("matmul", lambda self, x, y: torch.einsum("bi,bj->bij", x.mean(1), y.mean(1)).flatten(1)),
}


def layers() -> dict[str, nn.Module]:
    return {
        "attention": nn.MultiheadAttention(8, 2, batch_first=True), "bilinear": nn.Bilinear(8, 8, 4),
        "after": nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), **{name: nn.Linear(8, 8) for name in "qkvo"},
    }  # fmt: skip


every_attention = pytest.mark.parametrize("attend", ATTEND)


@every_attention
@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("both", [False, True])
def test_the_join_after_a_co_attention_is_a_point(attend: str, join: str, both: bool) -> None:
    kind, joined = JOINS[join]

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        seen = self.after(ATTEND[attend](self, a, b))
        return joined(self, seen, self.after(ATTEND[attend](self, b, a)) if both else a).relu()

    found = told(forward, inputs(a=(6, 8), b=(6, 8)), **layers())
    assert found == [("attention", {"a", "b"})] * (1 + both) + [(kind, {"a", "b"})]


STAYS: dict[str, Attend] = {
    "residual": lambda self, a, seen: a + seen,
    "residual around a layer": lambda self, a, seen: seen.relu() + a,
    "gated residual": lambda self, a, seen: a + seen * torch.sigmoid(self.q(a)),
    "beside self-attention": lambda self, a, seen: self.attention(a, a, a)[0] + seen,
    "in parallel to a layer": lambda self, a, seen: seen + self.q(a) + a,
}


@every_attention
@pytest.mark.parametrize("stays", STAYS)
def test_a_residual_connection_gives_the_stream_back(attend: str, stays: str) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        stream = STAYS[stays](self, a, ATTEND[attend](self, a, b))
        return torch.cat([self.after(stream).mean(1), self.o(a).mean(1)], 1).relu()

    assert told(forward, AB, **layers()) == [("attention", {"a", "b"})]


@every_attention
def test_two_results_of_attention_to_one_stream_do_not_meet(attend: str) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([ATTEND[attend](self, a, b), self.after(ATTEND[attend](self, a, b))], -1).relu()

    assert {kind for kind, _ in told(forward, AB, **layers())} == {"attention"}


def test_a_residual_connection_around_what_comes_after_the_attention() -> None:
    """The one that carries the stream has been given values before; it stays what it is."""

    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        seen = ATTEND["by hand"](self, a, b).amax(1)
        deeper = self.k(seen)[:, None] @ self.q(b).transpose(1, 2).softmax(-1) @ self.v(b)
        return torch.cat([seen + deeper[:, 0], b.mean(1)], 1).relu()

    assert told(forward, AB, **layers())[-1][0] == "concat"


def test_a_decoder_layer_of_torch_adds_what_asks() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([self.layer(a, b).mean(1), a.mean(1)], 1).relu()

    layer = nn.TransformerDecoderLayer(8, 2, 8, batch_first=True)
    assert told(forward, AB, layer=layer) == [("attention", {"a", "b"})]


@every_attention
@pytest.mark.parametrize("side", ["a", "b"])
def test_regbn_goes_into_the_join_after_a_co_attention(attend: str, side: str) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([ATTEND[attend](self, a, b).mean(1), a.mean(1)], 1))

    model = make(forward, **layers(), head=nn.Linear(16, 3))
    rules = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": side}]}
    report = regbn_surgery.verify(regbn_surgery.regbnify(model, rules, AB), inputs(a=(4, 8), b=(5, 8)))
    assert report.ok, report
    assert [{f, g} for site in report.sites for f, g in site.carried] == [{("a",), ("b",)}]
