"""Attention in the forms that a pattern for softmax(QKᵀ)V would miss, and the outer sum that is no attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, point, pooled, side, tokens
from ._parts import MapEncoder, PatchEncoder, TokenEncoder


class MapAttention(nn.Module):
    """Attention between feature maps, values first: `bmm(v, wᵀ)`, as non-local and dual attention blocks write it."""

    def __init__(self, channels: int, context_channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, 4, 1)
        self.key = nn.Conv2d(context_channels, 4, 1)
        self.value = nn.Conv2d(context_channels, channels, 1)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        query = self.query(x).view(batch, -1, height * width).permute(0, 2, 1)
        key = self.key(context).flatten(2)
        weights = torch.softmax(torch.bmm(query, key), dim=-1)
        mixed = torch.bmm(self.value(context).flatten(2), weights.permute(0, 2, 1))
        return self.scale * mixed.view(batch, channels, height, width) + x


class MapAttentionClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.optical = MapEncoder(3, 8)
        self.radar = MapEncoder(2, 6)
        self.attention = MapAttention(8, 6)
        self.head = nn.Linear(8, 5)

    def forward(self, optical: torch.Tensor, radar: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(self.optical(optical), self.radar(radar)).mean(dim=(2, 3)))


class AdditiveAttention(nn.Module):
    """`softmax(vᵀ tanh(W q + U k)) k` for every pair of positions (Bahdanau et al., 2015)."""

    def __init__(self, features: int, context_features: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(features, hidden)
        self.key = nn.Linear(context_features, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        pairs = torch.tanh(self.query(x).unsqueeze(2) + self.key(context).unsqueeze(1))
        weights = torch.softmax(self.score(pairs).squeeze(-1), dim=-1)
        return torch.bmm(weights, context)


class AdditiveAttentionClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = TokenEncoder(40, 10)
        self.image_encoder = PatchEncoder(3, 12)
        self.attention = AdditiveAttention(10, 12, 7)
        self.head = nn.Linear(12, 5)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        read = self.attention(self.text_encoder(text), self.image_encoder(image))
        return self.head(read.mean(dim=1))


class FusedKernelAttention(nn.Module):
    """`F.scaled_dot_product_attention` with heads: QK and PV in one call."""

    def __init__(self, features: int, context_features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(features, features)
        self.key = nn.Linear(context_features, features)
        self.value = nn.Linear(context_features, features)
        self.out = nn.Linear(features, features)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        mixed = F.scaled_dot_product_attention(
            self._split(self.query(x)), self._split(self.key(context)), self._split(self.value(context))
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class FusedKernelClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = TokenEncoder(40, 16)
        self.image_encoder = PatchEncoder(3, 12)
        self.attention = FusedKernelAttention(16, 12, heads=4)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x, context = self.text_encoder(text), self.image_encoder(image)
        return self.head(self.norm(x + self.attention(x, context)).mean(dim=1))


class RelationNetwork(nn.Module):
    """An outer sum over all pairs of objects and words, then a network over the pairs (Santoro et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.object_proj = nn.Linear(6, 12)
        self.word_proj = nn.Linear(8, 12)
        self.relation = nn.Sequential(nn.ReLU(), nn.Linear(12, 10), nn.ReLU())
        self.head = nn.Linear(10, 5)

    def forward(self, objects: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        pairs = self.object_proj(objects)[:, :, None] + self.word_proj(words)[:, None]
        return self.head(self.relation(pairs).sum(dim=(1, 2)))


def image_and_text(length: int):
    return lambda batch: (torch.randn(batch, 3, 8, 8), tokens(batch, length, vocabulary=40))


IMAGE_AND_TEXT = {"image": ["image"], "text": ["text"]}
#: The outer sum and the weighting of the values are one attention.
ADDITIVE = (point("attention", "attention", pooled(side("text", 10), side("image", 12)), calls=2),)

CASES = (
    ZooCase(
        name="values_first_attention",
        build=MapAttentionClassifier,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 2, 6, 6)),
        modalities={"optical": ["optical"], "radar": ["radar"]},
        points=(point("attention", "attention", pooled(side("optical", 8), side("radar", 6)), calls=2),),
        normalize="optical",
    ),
    ZooCase(
        name="additive_attention_long_memory",
        build=AdditiveAttentionClassifier,
        inputs=image_and_text(length=3),  # against 4 patches
        modalities=IMAGE_AND_TEXT,
        points=ADDITIVE,
        normalize="text",
    ),
    ZooCase(
        name="additive_attention_long_query",
        build=AdditiveAttentionClassifier,
        inputs=image_and_text(length=6),
        modalities=IMAGE_AND_TEXT,
        points=ADDITIVE,
        normalize="text",
    ),
    ZooCase(
        name="fused_kernel_attention",
        build=FusedKernelClassifier,
        inputs=image_and_text(length=5),
        modalities=IMAGE_AND_TEXT,
        points=(point("attention", "attention", pooled(side("text", 16), side("image", 12))),),
        normalize="text",
    ),
    ZooCase(
        name="outer_sum",
        build=RelationNetwork,
        inputs=lambda batch: (torch.randn(batch, 4, 6), torch.randn(batch, 5, 8)),
        modalities={"objects": ["objects"], "words": ["words"]},
        points=(point("", "sum", pooled(side("objects", 12), side("words", 12))),),
        normalize="objects",
    ),
)
