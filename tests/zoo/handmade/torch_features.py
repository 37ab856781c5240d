"""What a forward may do besides calling layers: checkpoints, custom gradients, scripts, hooks, shared modules."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .._case import ZooCase, flat, point, pooled, side, tokens
from ._parts import ImageEncoder, PatchEncoder, TokenEncoder, VectorEncoder


class ImageAndTable(nn.Module):
    """Two encoders and a head; the models below differ in what happens to the image on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 10)
        self.table_encoder = VectorEncoder(10, 6)
        self.head = nn.Linear(16, 4)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return self.image_encoder(image)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.encode(image), self.table_encoder(table)], dim=1))


class Checkpointed(ImageAndTable):
    """The image branch is computed again in the backward pass."""

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.image_encoder, image, use_reentrant=False)


class ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, strength: float) -> torch.Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.strength * gradient, None


class DomainAdversarial(ImageAndTable):
    """The image features reach the head through a gradient reversal (Ganin et al., 2016)."""

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return ReverseGradient.apply(self.image_encoder(image), 0.5)


class FrozenEncoder(ImageAndTable):
    """The image branch gets no gradients."""

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return self.image_encoder(image)


class ScaledByHook(ImageAndTable):
    """A hook that somebody put on an encoder changes what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder.register_forward_hook(_halve)


def _halve(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output / 2


class ScriptedEncoder(ImageAndTable):
    """The image branch is TorchScript: nothing inside it can be seen."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # scripts are deprecated, and still in use
            self.image_encoder = torch.jit.script(self.image_encoder)


class OptionalInput(nn.Module):
    """Two of the inputs may be missing; the table is given by keyword, the mask not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 10)
        self.table_encoder = VectorEncoder(10, 6)
        self.head = nn.Linear(16, 4)

    def forward(
        self, image: torch.Tensor, *, table: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        features = self.image_encoder(image if mask is None else image * mask)
        if table is None:
            context = features.new_zeros(features.shape[0], 6)
        else:
            context = self.table_encoder(table)
        return self.head(torch.cat([features, context], dim=1))


class IndexAssignment(nn.Module):
    """A concatenation written as two assignments into an empty tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 10)
        self.table_encoder = VectorEncoder(10, 6)
        self.head = nn.Linear(16, 4)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        features, context = self.image_encoder(image), self.table_encoder(table)
        fused = features.new_zeros(features.shape[0], 16)
        fused[:, :10] = features
        fused[:, 10:] = context
        return self.head(fused)


class SentencePair(nn.Module):
    """One encoder called twice, and the usual head on u, v, |u - v| and u * v (Conneau et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.EmbeddingBag(40, 6), nn.Linear(6, 8), nn.Tanh())
        self.head = nn.Linear(32, 3)

    def forward(self, premise: torch.Tensor, hypothesis: torch.Tensor) -> torch.Tensor:
        u, v = self.encoder(premise), self.encoder(hypothesis)
        return self.head(torch.cat([u, v, (u - v).abs(), u * v], dim=1))


class ReadingBlock(nn.Module):
    def __init__(self, features: int, context_features: int) -> None:
        super().__init__()
        self.query = nn.Linear(features, features)
        self.key = nn.Linear(context_features, features)
        self.value = nn.Linear(context_features, features)
        self.norm = nn.LayerNorm(features)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("bqc,bkc->bqk", self.query(x), self.key(context)) / math.sqrt(x.shape[-1])
        read = torch.einsum("bqk,bkc->bqc", scores.softmax(dim=-1), self.value(context))
        return self.norm(x + read)


class RecurrentReader(nn.Module):
    """One block with one set of weights reads the image three times."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = TokenEncoder(40, 10)
        self.image_encoder = PatchEncoder(3, 12)
        self.block = ReadingBlock(10, 12)
        self.head = nn.Linear(10, 5)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x, context = self.text_encoder(text), self.image_encoder(image)
        for _ in range(3):
            x = self.block(x, context)
        return self.head(x.mean(dim=1))


def image_and_table(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 8, 8), torch.randn(batch, 10)


MODALITIES = {"image": ["image"], "table": ["table"]}
CONCAT = (point("", "concat", flat(side("image", 10), side("table", 6))),)


def same_fusion(name: str, build: type[nn.Module], **more: Any) -> ZooCase:
    return ZooCase(
        name=name,
        build=build,
        inputs=image_and_table,
        modalities=MODALITIES,
        points=CONCAT,
        normalize="image",
        **more,
    )


CASES = (
    same_fusion("checkpointed", Checkpointed),
    same_fusion("gradient_reversal", DomainAdversarial),
    same_fusion("frozen_encoder", FrozenEncoder),
    same_fusion("hooked_encoder", ScaledByHook),
    same_fusion("scripted_encoder", ScriptedEncoder),
    ZooCase(
        name="optional_input",
        build=OptionalInput,
        inputs=lambda batch: {"image": torch.randn(batch, 3, 8, 8), "table": torch.randn(batch, 10)},
        modalities=MODALITIES,
        points=CONCAT,
        normalize="image",
    ),
    ZooCase(
        name="index_assignment",
        build=IndexAssignment,
        inputs=image_and_table,
        modalities=MODALITIES,
        # The second assignment writes the table beside the image. RegBN goes between the two encoders.
        points=(point("", "scatter", meets=("image", "table"), selected=False, sites_known=False),),
        pair_sites=(flat(side("image", 10), side("table", 6)),),
        rules=({"id": "encoders", "pair": {"f": "module:image_encoder", "g": "module:table_encoder"}},),
        normalize="image",
    ),
    ZooCase(
        name="sentence_pair",
        build=SentencePair,
        inputs=lambda batch: (tokens(batch, 5, vocabulary=40), tokens(batch, 7, vocabulary=40)),
        modalities={"premise": ["premise"], "hypothesis": ["hypothesis"]},
        # u and v meet in the difference, in the product, and once more in the concatenation with these two.
        points=(
            point("", "sum", flat(side("premise", 8), side("hypothesis", 8)), level="middle"),
            point("", "product", flat(side("premise", 8), side("hypothesis", 8)), level="middle"),
            point(
                "",
                "concat",
                meets=("premise", "hypothesis", "premise+hypothesis"),
                selected=False,
                sites_known=False,
            ),
        ),
        rules=({"id": "pair", "match": {"kind": ["sum", "product"]}, "normalize": "premise"},),
        normalize="premise",
    ),
    ZooCase(
        name="recurrent_reader",
        build=RecurrentReader,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), tokens(batch, 5, vocabulary=40)),
        modalities={"image": ["image"], "text": ["text"]},
        # Three calls of one owner in one role: one point and one RegBN.
        points=(point("block", "attention", pooled(side("text", 10), side("image", 12)), calls=6),),
        normalize="text",
    ),
)
