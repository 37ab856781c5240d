"""Small models that see a picture and go on in words, token by token, with a key-value cache or without one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import regbn_surgery

from .models import build, forced, ways

PLACEHOLDER = 19
WIDTH = 8


class Cache:
    """Keys and values of the tokens so far, as `transformers` keeps them."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None

    def get_seq_length(self) -> int:
        return 0 if self.kept is None else self.kept.shape[1]

    def update(self, new: Tensor) -> Tensor:
        self.kept = new if self.kept is None else torch.cat([self.kept, new], dim=1)
        return self.kept

    def reorder(self, beams: Tensor) -> None:
        assert self.kept is not None
        self.kept = self.kept[beams]


class Causal(nn.Module):
    """Each token attends to itself and to those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        kv = self.kv(x) if cache is None else cache.update(self.kv(x))
        keys, values = kv.chunk(2, dim=-1)
        scores = 3 * self.q(x) @ keys.transpose(1, 2)
        length, start = x.shape[1], keys.shape[1] - x.shape[1]
        late = torch.ones(length, keys.shape[1], dtype=torch.bool).triu(start + 1)
        return x + self.out(scores.masked_fill(late, float("-inf")).softmax(-1) @ values)


class See(nn.Module):
    """Image tokens, each of which knows of the others."""

    def __init__(self, inputs: int = 6) -> None:
        super().__init__()
        self.own, self.all = nn.Linear(inputs, WIDTH), nn.Linear(inputs, WIDTH)

    def forward(self, image: Tensor) -> Tensor:
        return self.own(image) + self.all(image.mean(1, keepdim=True))


class Writing(nn.Module):
    """Image tokens are written over placeholders of the text (LLaVA)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.see = nn.Embedding(20, WIDTH), See()
        self.layer, self.head = Causal(), nn.Linear(WIDTH, 20)

    def forward(self, ids: Tensor, image: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        x = self.embed(ids)
        if image is not None:
            x = self.meet(ids, x, image)
        return self.head(self.layer(x, cache))

    def meet(self, ids: Tensor, x: Tensor, image: Tensor) -> Tensor:
        return x.masked_scatter((ids == PLACEHOLDER)[..., None].expand_as(x), self.see(image))


class InPlace(Writing):
    def meet(self, ids: Tensor, x: Tensor, image: Tensor) -> Tensor:
        x[ids == PLACEHOLDER] = self.see(image).flatten(0, 1)
        return x


class Joining(Writing):
    """Image tokens stand before the text (GIT)."""

    def meet(self, ids: Tensor, x: Tensor, image: Tensor) -> Tensor:
        return torch.cat([self.see(image), x], dim=1)


class Beside(Writing):
    """Reads the words as they are, too: those readers are none of RegBN's."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor, image: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        words = self.embed(ids)
        beside = self.skip(words)
        x = words
        if image is not None:
            x = self.meet(ids, x, image)
        return self.head(self.layer(x, cache) + beside)


class Elsewhere(Writing):
    """Goes another way where there is no image: who reads f then, nobody has seen."""

    def forward(self, ids: Tensor, image: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        x = self.embed(ids)
        if image is None:
            return self.head(self.layer(x, cache))
        return self.head(self.layer(self.meet(ids, x, image), cache))


class Cross(nn.Module):
    """Words attend to an image, whose keys are kept (Mllama)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor, image: Tensor | None = None, cache: Any = None) -> Tensor:
        if image is not None:
            kv = self.kv(image)
            if cache is not None:
                cache.image = kv
        else:
            kv = getattr(cache, "image", None)
            if kv is None:
                return x
        keys, values = kv.chunk(2, dim=-1)
        return x + (3 * self.q(x) @ keys.transpose(1, 2)).softmax(-1) @ values


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.see = nn.Embedding(20, WIDTH), See()
        self.layer, self.cross, self.head = Causal(), Cross(), nn.Linear(WIDTH, 20)

    def forward(self, ids: Tensor, image: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        x = self.layer(self.embed(ids), cache)
        return self.head(self.cross(x, None if image is None else self.see(image), cache))


def example(batch: int = 3, image: int = 0) -> dict[str, Tensor]:
    """Words with two placeholders, and two image tokens; `image` numbers other images for the same words."""
    generator = torch.Generator().manual_seed(100 * image + batch)
    ids = torch.randint(0, PLACEHOLDER, (batch, 5), generator=torch.Generator().manual_seed(batch))
    ids[:, 1:3] = PLACEHOLDER
    return {"ids": ids, "image": torch.randn(batch, 2, 6, generator=generator)}


KINDS = {Joining: "concat", Reading: "attention"}


def rewritten(cls: type[nn.Module], way: str = "", normalize: str = "words", **rule: Any) -> Any:
    """In evaluation, with a projection that matters; RegBN goes in by `way`, if there is one."""
    model = build(cls)
    against = "image" if normalize == "words" else "words"
    match = {"kind": KINDS.get(cls, "scatter")}
    rules = {
        "version": 1,
        "modalities": {"words": ["ids"], "image": ["image"]},
        "rules": [{"id": "x", "match": match, "normalize": normalize, "against": against, **rule}],
    }
    with forced(way or "hook"):
        made: Any = regbn_surgery.regbnify(model, rules, example).eval()
    assert not way or ways(made) == {way}
    generator = torch.Generator().manual_seed(0)
    for module in made.modules():
        if isinstance(module, regbn_surgery.RegBN):
            for factor in module.factors:
                factor.copy_(torch.randn(factor.shape, generator=generator))
    return made


@torch.no_grad()
def talk(model: Any, given: dict[str, Tensor], steps: int = 4, cache: Any = None) -> tuple[Tensor, Tensor]:
    """The words that the model goes on with, greedily, `[B, steps]`, and the logits behind each, `[steps, B, words]`.

    Without a cache every step sees all words and the image.
    """
    ids, said = given["ids"], []
    for i in range(steps):
        if cache is None:
            logits = model(ids, given["image"])[:, -1]
        elif i == 0:
            logits = model(ids, given["image"], cache)[:, -1]
        else:
            logits = model(ids[:, -1:], cache=cache)[:, -1]
        said.append(logits)
        ids = torch.cat([ids, logits[:, :PLACEHOLDER].argmax(-1, keepdim=True)], dim=1)
    return ids[:, -steps:], torch.stack(said)
