"""Causal streams: told apart from those that see both ways, and from those that see no other position at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regbn_surgery import Inputs, inspect
from regbn_surgery._analyse._causal import causal_modalities

TOKENS = 6


class Reader(nn.Module):
    """Tokens read causally, both ways, or one by one; an image is attended to; one prediction for each token."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.words = nn.Embedding(50, 8)
        self.own = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.LSTM(8, 4, batch_first=True, bidirectional=True)
        self.image = nn.Linear(5, 8)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 9)

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        if self.how in ("causal", "both ways", "pooled"):
            length = ids.shape[1]
            mask = torch.ones(length, length, dtype=torch.bool).triu(1) if self.how != "both ways" else None
            x = x + self.own(x, x, x, attn_mask=mask, need_weights=False)[0]
        elif self.how == "recurrent both ways":
            x = self.recurrent(x)[0]
        image = self.image(image)
        x = x + self.cross(x, image, image, need_weights=False)[0]
        return self.head(x.mean(1) if self.how == "pooled" else x)


def found(how: str, model: nn.Module | None = None) -> frozenset[str]:
    torch.manual_seed(0)
    model = model or Reader(how)
    inputs = Inputs(torch.randn(2, 4, 5), torch.randint(3, 50, (2, TOKENS)))
    return causal_modalities(model, inputs, inspect(model, inputs))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("causal", {"ids"}),
        ("both ways", set()),
        ("recurrent both ways", set()),
        ("one by one", set()),  # position-wise: no position sees another one, so nothing can leak through a decoder
        ("pooled", set()),  # causal inside, but nothing is predicted position by position
    ],
)
def test_streams(how: str, expected: set[str]) -> None:
    assert found(how) == expected


def test_a_recurrent_decoder_is_causal() -> None:
    model = Reader("recurrent both ways")
    model.recurrent = nn.LSTM(8, 8, batch_first=True)
    assert found("", model) == {"ids"}


def test_tokens_that_the_model_refuses_are_passed_over() -> None:
    class Strict(Reader):
        def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            if int(ids[:, -1].min()) != int(ids[:, -1].max()) or int(ids[0, -1]) not in (7, 8):
                raise ValueError("the last token must be 7 or 8")
            return super().forward(image, ids)

    torch.manual_seed(0)
    ids = torch.randint(9, 50, (2, TOKENS))
    ids[:, -1] = 7
    model = Strict("causal")
    inputs = Inputs(torch.randn(2, 4, 5), ids)
    assert causal_modalities(model, inputs, inspect(model, inputs)) == {"ids"}


@pytest.mark.parametrize("highest", [0, 9, 49])
def test_no_token_is_tried_that_the_table_may_not_have(highest: int) -> None:
    model = Reader("causal")
    seen: list[int] = []
    model.words.register_forward_pre_hook(lambda _, args: seen.append(int(args[0].max())))
    torch.manual_seed(0)
    ids = torch.full((2, TOKENS), highest)
    inputs = Inputs(torch.randn(2, 4, 5), ids)
    assert causal_modalities(model, inputs, inspect(model, inputs)) == {"ids"}
    assert max(seen) <= max(highest, 1)


def test_the_model_is_left_as_it_was() -> None:
    model = Reader("causal").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found("", model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_weights_nothing_is_said() -> None:
    model = Reader("causal")
    inputs = Inputs(torch.randn(2, 4, 5), torch.randint(3, 50, (2, TOKENS)))
    inspection = inspect(model, inputs)
    with torch.device("meta"):
        empty = Reader("causal")
    assert causal_modalities(empty, inputs, inspection) == frozenset()
