"""What waits for the other side of a RegBN, and what may not: writes in place, modes, random draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RewriteError
from regbn_surgery._surgery._reorder import without_dropout

from .models import everything, rules, run, step, vectors

PAIR = {
    "version": 1,
    "modalities": {"a": ["a"], "b": ["b"]},
    "rules": [{"id": "p", "pair": {"f": "module:enc_a", "g": "module:enc_b"}}],
}


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 4)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(12, 3)


class WrittenThroughAView(Base):
    """What is joined is written to, under another name, after both sides are there."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x, y = self.enc_a(a), self.enc_b(b)
        x[:, :4].mul_(3)
        return self.head(torch.cat([x, y], -1))


def test_regbn_sees_what_was_written_in_place_before_the_call() -> None:
    """With identity in its place nobody could tell, since f' is then f itself."""
    rewritten: Any = regbn_surgery.regbnify(WrittenThroughAView(), rules(), vectors())
    step(rewritten, vectors())
    rewritten.eval()
    x, y = rewritten.enc_a(vectors()["a"]), rewritten.enc_b(vectors()["b"])
    x = torch.cat([3 * x[:, :4], x[:, 4:]], 1)
    expected = rewritten.head(torch.cat(rewritten.regbn_x.regbn(x, y), -1))
    torch.testing.assert_close(run(rewritten, vectors()), expected)


class SetsAnItem(Base):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = self.enc_a(a)
        scale = a.new_ones(len(a), 8)
        early = x * scale
        scale[:, 0] = 3
        y = self.enc_b(b)
        return self.head(torch.cat([early + x * scale, y], -1))


class LayerInPlace(Base):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = self.enc_a(a)
        scale = -a.new_ones(len(a), 8)
        early = x * scale
        self.relu(scale)
        y = self.enc_b(b)
        return self.head(torch.cat([early + x * scale, y], -1))


class WaitsToWrite(Base):
    """What waits writes to memory that a later call, which need not wait, reads under another name."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = self.enc_a(a)
        scale = a.new_ones(len(a), 8)
        scale[:, :4].mul_(x[:, :4])
        total = scale.sum(1, keepdim=True)
        y = self.enc_b(b)
        return self.head(torch.cat([x + total, y], -1))


class Autocast(Base):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = self.enc_a(a)
        early = x * 2
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.enc_b(b)
        return self.head(torch.cat([early, y.float()], -1))


@pytest.mark.parametrize(
    ("cls", "match"),
    [
        (SetsAnItem, r"setitem at .* writes in place what .* reads"),
        (LayerInPlace, r"`relu` at .* writes in place what .* reads"),
        (WaitsToWrite, r"mul at .* writes in place what .* reads"),
        (Autocast, r"across a change of the gradient or autocast mode"),
    ],
)
def test_what_may_not_wait_is_refused_with_the_reason(cls: type[Base], match: str) -> None:
    model = cls()
    before = everything(model)
    with pytest.raises(RewriteError, match=match):
        regbn_surgery.regbnify(model, PAIR, vectors(), inplace=True)
    assert everything(model) == before


# -- random draws -----------------------------------------------------------------------------------------------------


def test_nothing_is_drawn_without_dropout_and_the_input_is_not_handed_on_itself() -> None:
    x = torch.randn(3, 4)
    q = torch.randn(2, 5, 8)
    attention = nn.MultiheadAttention(8, 2, dropout=0.9, batch_first=True)
    with without_dropout(attention):
        found = F.dropout(x, 0.9)
        assert torch.equal(found, x)
        assert found is not x
        for call in (
            F.scaled_dot_product_attention(q, q, q, dropout_p=0.9, is_causal=True),
            F.scaled_dot_product_attention(q, q, q, None, 0.9, True),
            F.scaled_dot_product_attention(q, q, q, None, 0.9, is_causal=True),
        ):
            torch.testing.assert_close(call, F.scaled_dot_product_attention(q, q, q, is_causal=True))
        attended = attention(q, q, q)[0]
    torch.testing.assert_close(attended, attention.eval()(q, q, q)[0])


def test_recurrent_layers_drop_out_again_afterwards_even_after_an_error() -> None:
    model = nn.ModuleList([nn.LSTM(4, 4, 2, dropout=0.5), nn.GRU(4, 4, 2, dropout=0.25), nn.GRU(4, 4)])

    def fail() -> None:
        with without_dropout(model):
            assert [layer.dropout for layer in model] == [0, 0, 0]
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        fail()
    assert [layer.dropout for layer in model] == [0.5, 0.25, 0]
    assert not torch.equal(F.dropout(torch.ones(64), 0.5), torch.ones(64))
