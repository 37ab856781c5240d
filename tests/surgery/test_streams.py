"""Masks over positions and streams that a decoder goes on with, in each of the three ways alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RegBNBypassedError

from .models import Cross, Masked, build, counting, forced, operate, run, site_of, step, token_pairs, ways


@pytest.fixture(params=["hook", "source", "mode"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Keeps the surgery from the ways that would be tried before."""
    wanted: str = request.param
    with forced(wanted):
        yield wanted


def with_padding(fill: float, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Six samples whose last tokens of b are padding with `fill` in it; the mask is `padding` or `b_mask`."""
    inputs = token_pairs(6)
    keep = torch.ones(6, 5, dtype=torch.bool)
    keep[:, 4:] = False
    keep[3:, 2:] = False
    inputs["b"] = inputs["b"].masked_fill(~keep[..., None], fill)
    return {**inputs, "padding": ~keep} if dtype is None else {**inputs, "b_mask": keep.to(dtype)}


@pytest.mark.parametrize("direction", ["g", "f"])
@pytest.mark.parametrize("dtype", [None, torch.bool, torch.long, torch.float32], ids=str)
def test_padding_is_left_out_of_the_fit(way: str, dtype: torch.dtype | None, direction: str) -> None:
    results = []
    normalize, against = ("a", "b") if direction == "g" else ("b", "a")
    for fill in (0.0, 50.0):
        cls = Cross if dtype is None else Masked
        model = operate(build(cls), with_padding(0.0, dtype), "attention", normalize=normalize, against=against)
        assert ways(model) == {way}
        for batch in (6, 5):
            example = {name: x[:batch] for name, x in with_padding(fill, dtype).items()}
            with counting(model) as calls:
                run(model, example, training=True)
            assert sum(calls.values()) == 1
            step(model, example)
        results.append((run(model, with_padding(fill, dtype), training=False), site_of(model).regbn.W.clone()))
    torch.testing.assert_close(results[0], results[1])


# -- decoders ---------------------------------------------------------------------------------------------------------


class Cache:
    def __init__(self) -> None:
        self.tokens: Tensor | None = None

    def get_seq_length(self) -> int:
        return 0 if self.tokens is None else self.tokens.shape[1]

    def update(self, x: Tensor) -> Tensor:
        self.tokens = x if self.tokens is None else torch.cat([self.tokens, x], dim=1)
        return self.tokens


class Attend(nn.Module):
    """Text tokens attend to themselves, as far as they have come, and to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: Tensor, context: Tensor, past_key_values: Cache | None = None) -> Tensor:
        scores = self.q(hidden) @ self.k(context).transpose(-1, -2)
        return hidden + scores.softmax(-1) @ self.v(context)


class Captions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = nn.Embedding(20, 8), nn.Linear(6, 8)
        self.own = nn.Linear(8, 8)
        self.cross = Attend()
        self.head = nn.Linear(8, 20)

    def forward(self, ids: Tensor, image: Tensor, past_key_values: Cache | None = None) -> Tensor:
        x = self.text(ids)
        seen = x if past_key_values is None else past_key_values.update(x)
        causal = torch.ones(seen.shape[1], seen.shape[1]).tril()[-x.shape[1] :]
        x = x + self.own(causal @ seen / causal.sum(-1, keepdim=True))
        return self.head(self.cross(x, self.image(image), past_key_values=past_key_values))


def captions(batch: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {
        "ids": torch.randint(0, 20, (batch, 5), generator=generator),
        "image": torch.randn(batch, 3, 6, generator=generator),
    }


def captioning(normalize: str, **rule: Any) -> Any:
    given = {
        "version": 1,
        "modalities": {"text": ["ids"], "image": ["image"]},
        "rules": [{"id": "x", "match": {"kind": "attention"}, "normalize": normalize, **rule}],
    }
    return regbn_surgery.regbnify(build(Captions), given, captions())


def test_a_decoder_with_a_cache_says_what_it_says_without(way: str) -> None:
    """f is the text: what is subtracted from a token depends on the image and on W, and on no other token."""
    model = captioning("text")
    assert ways(model) == {way}
    site = site_of(model)
    assert site.regbn.options.fit == "running", "the text is causal"
    for _ in range(2):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run(model, captions(6), training=True).square().mean().backward()
        optimizer.step()
    assert site.regbn.W.any()
    whole = run(model, captions(), training=False)
    cache, steps = Cache(), []
    for i in range(5):
        with counting(model) as calls:
            steps.append(model(captions()["ids"][:, i : i + 1], captions()["image"], past_key_values=cache))
        assert sum(calls.values()) == 1, "RegBN has a part in every step"
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_teacher_forcing_does_not_see_the_future(way: str) -> None:
    """With `fit: running` a training step's outputs at a position do not change with later tokens."""
    outputs = []
    for last in (3, 17):
        model = captioning("text")
        for batch in (6, 5):
            run(model, captions(batch), training=True)
        example = captions(6)
        example["ids"][:, -1] = last
        outputs.append(run(model, example, training=True)[:, :-1])
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)


def test_a_growing_g_is_refused_where_a_cache_shows_its_end_alone(way: str) -> None:
    model = captioning("image", allow_noncausal=True).eval()
    cache = Cache()
    first = model(captions()["ids"][:, :1], captions()["image"], past_key_values=Cache())
    assert first.isfinite().all()
    model(captions()["ids"], captions()["image"])
    model(captions()["ids"][:, :1], captions()["image"], past_key_values=cache)
    with pytest.raises(RegBNBypassedError, match=r"only the last 1 tokens of them.*use_cache=False"):
        model(captions()["ids"][:, 1:2], captions()["image"], past_key_values=cache)
