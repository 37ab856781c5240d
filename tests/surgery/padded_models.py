"""Models of padded sequences, of each kind of point. What they return at a word does not depend on padding, but for
what RegBN makes of it. At module level, so that they can be pickled."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .models import run, site_of

A, B = 7, 5
Inputs = dict[str, Any]


def bare(batch: int = 6, seed: int = 0) -> Inputs:
    """Without padding, and without masks."""
    generator = torch.Generator().manual_seed(100 * seed + batch)
    a, b = torch.randn(batch, A, 6, generator=generator), torch.randn(batch, B, 5, generator=generator)
    return {"a": a, "b": b}


USUAL = ("attention_mask", "b_padding_mask")


def padded(inputs: Inputs, pads_a: int = 3, pads_b: int = 2, names: tuple[str, str] = USUAL) -> Inputs:
    """The same with padding behind it that is full of numbers, and the masks: 1 is a word of a, true a pad of b."""
    given: Inputs = {}
    for name, pads in (("a", pads_a), ("b", pads_b)):
        x = inputs[name]
        given[name] = torch.cat([x, torch.full((len(x), pads, x.shape[2]), 9.0)], dim=1)
    batch = len(inputs["a"])
    keep = torch.arange(A + pads_a).expand(batch, -1) < A
    leave = torch.arange(B + pads_b).expand(batch, -1) >= B
    return {**given, names[0]: keep.long(), names[1]: leave}


def at_words(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return outputs[0][:, :A], outputs[1][:, :B]


#: Names that tell nothing, and what a rule says of them.
NAMES = ("words", "pads")
SPELT = {"a": {"argument": "words", "marks": "content"}, "b": {"argument": "pads", "marks": "padding"}}


class Encoders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 8)
        self.head = nn.Linear(8, 3)

    def read(self, joint: Tensor, a: Tensor, words: Any, pads: Any) -> tuple[Tensor, Tensor]:
        """Each token with the mean of those that count."""
        of_a = a.new_ones(a.shape[:2]) if words is None else words != 0
        of_b = a.new_ones((a.shape[0], joint.shape[1] - a.shape[1])) if pads is None else pads == 0
        keep = torch.cat([of_a, of_b], dim=1)
        mean = (joint * keep[..., None]).sum(1, keepdim=True) / keep.sum(1)[:, None, None]
        out = self.head(joint + mean)
        return out[:, : a.shape[1]], out[:, a.shape[1] :]


class Tokens(Encoders):
    """Tokens of both, one behind the other."""

    def forward(
        self, a: Tensor, b: Tensor, attention_mask: Any = None, b_padding_mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        joint = torch.cat([self.enc_a(a), self.enc_b(b)], dim=1)
        return self.read(joint, a, attention_mask, b_padding_mask)


class Queries(Encoders):
    """Attention of torch's own: queries with the owner's mask, keys with the layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(
        self, a: Tensor, b: Tensor, attention_mask: Any = None, b_padding_mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        query, key = self.enc_a(a), self.enc_b(b)
        read = self.attention(query, key, key, key_padding_mask=b_padding_mask, need_weights=False)[0]
        return self.head(query + read), key


class OwnQueries(Queries):
    """Attention written out."""

    def forward(
        self, a: Tensor, b: Tensor, attention_mask: Any = None, b_padding_mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        query, key = self.enc_a(a), self.enc_b(b)
        scores = query @ key.transpose(1, 2)
        if b_padding_mask is not None:
            scores = scores.masked_fill(b_padding_mask[:, None], float("-inf"))
        return self.head(query + scores.softmax(-1) @ key), key


class Decoded(Queries):
    """torch's own decoder layer, which is given the mask of its memory by position."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(
        self, a: Tensor, b: Tensor, attention_mask: Any = None, b_padding_mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        query, key = self.enc_a(a), self.enc_b(b)
        pads = None if attention_mask is None else attention_mask == 0
        return self.head(self.decoder(query, key, None, None, pads, b_padding_mask)), key


class OneName(Queries):
    """The owner's `key_padding_mask` is that of the queries; the layer is given another one by this name."""

    def forward(
        self, a: Tensor, b: Tensor, key_padding_mask: Any = None, b_padding_mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        query, key = self.enc_a(a), self.enc_b(b)
        return self.head(query + self.attention(query, key, key, b_padding_mask, need_weights=False)[0]), key


class Gate(Encoders):
    """Tokens of a under a gate that b's first token makes."""

    def forward(
        self, a: Tensor, b: Tensor, attention_mask: Any = None, b_padding_mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(self.enc_b(b[:, 0]))
        return self.head(self.enc_a(a) * gate[:, None]), gate[:, None].expand(-1, b.shape[1], -1)


class Block(nn.Module):
    """Receives both branches, so that a hook serves."""

    def forward(self, x: Tensor, y: Tensor, *, attention_mask: Any = None, padding_mask: Any = None) -> Tensor:
        return torch.cat([x, y], dim=1)


class Hooked(Encoders):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(
        self, a: Tensor, b: Tensor, attention_mask: Any = None, b_padding_mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        x, y = self.enc_a(a), self.enc_b(b)
        joint = self.block(x, y, attention_mask=attention_mask, padding_mask=b_padding_mask)
        return self.read(joint, a, attention_mask, b_padding_mask)


class Exchanged(Hooked):
    """What the block gets first is not always a's, so that RegBN goes into its caller."""

    def forward(
        self, a: Tensor, b: Tensor, attention_mask: Any = None, b_padding_mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        pair = [self.enc_a(a), self.enc_b(b)]
        joint = self.block(*pair, attention_mask=attention_mask, padding_mask=b_padding_mask)
        return self.read(joint, a, attention_mask, b_padding_mask)


class Named(Encoders):
    """Masks whose names tell nothing."""

    def forward(self, a: Tensor, b: Tensor, words: Any = None, pads: Any = None) -> tuple[Tensor, Tensor]:
        joint = torch.cat([self.enc_a(a), self.enc_b(b)], dim=1)
        out = self.head(joint * joint[:, :1])
        return out[:, : a.shape[1]], out[:, a.shape[1] :]


class Tower(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(features, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Towers(nn.Module):
    """For pairs of layers of two towers, one of which runs before the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Tower(6), Tower(5)

    def forward(
        self, a: Tensor, b: Tensor, attention_mask: Any = None, b_padding_mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        return self.a(a), self.b(b)


class Encoded(Tokens):
    """a comes out of torch's own encoder, which writes zeros over padding where no gradient is wanted."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(
        self, a: Tensor, b: Tensor, attention_mask: Any = None, b_padding_mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        padding = None if attention_mask is None else attention_mask == 0
        x = self.encoder(self.enc_a(a), src_key_padding_mask=padding)
        joint = torch.cat([x, self.enc_b(b)], dim=1)
        return self.read(joint, a, attention_mask, b_padding_mask)


class Checkpointed(nn.Module):
    """The part that holds the fusion is computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tokens()

    def forward(
        self, a: Tensor, b: Tensor, attention_mask: Any = None, b_padding_mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        if not self.training:
            return self.inner(a, b, attention_mask, b_padding_mask)
        out: Any = checkpoint(self.inner, a, b, attention_mask, b_padding_mask, use_reentrant=False)
        return out


# -- what the tests ask about them -----------------------------------------------------------------------------------


def holds(model: nn.Module, seeds: int = 3) -> None:
    """Trained and evaluated on padded batches, the model is the one without padding, at every word."""
    plain = copy.deepcopy(model)
    for seed in range(seeds):
        inputs = bare(6, seed)
        pads = 3 + seed, 2 + seed
        step_on_words(model, padded(inputs, *pads))
        step_on_words(plain, inputs)
        for training in (True, False):
            found = at_words(run(model, padded(inputs, *pads), training))
            torch.testing.assert_close(found, at_words(run(plain, inputs, training)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)
    assert site_of(model).regbn.W.abs().max() > 0


def step_on_words(model: nn.Module, inputs: Inputs) -> None:
    loss = sum(out.square().mean() for out in at_words(run(model, inputs, training=True)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss.backward()  # type: ignore[union-attr]
    optimizer.step()
    optimizer.zero_grad()


def masks_of(model: nn.Module) -> list[tuple[str, str]]:
    return [(mask.side, mask.argument) for mask in site_of(model).masks]


def given_to_regbn(model: nn.Module) -> list[Inputs]:
    seen: list[Inputs] = []
    site_of(model).regbn.register_forward_hook(lambda m, args, kwargs, out: seen.append(kwargs), with_kwargs=True)
    return seen
