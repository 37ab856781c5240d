"""One stream reads another by attention: torch's module in both layouts, and written out by hand."""

from __future__ import annotations

import math

import torch
from torch import nn

from .._case import ZooCase, point, pooled, side, tokens
from ._parts import PatchEncoder, TokenEncoder

MODALITIES = {"image": ["image"], "text": ["text"]}


def image_and_text(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 12, 12), tokens(batch, 5, vocabulary=40)


class BatchFirstBlock(nn.Module):
    def __init__(self, features: int, context_features: int) -> None:
        super().__init__()
        self.cross = nn.MultiheadAttention(features, 4, kdim=context_features, vdim=context_features, batch_first=True)
        self.norm = nn.LayerNorm(features)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        attended, _ = self.cross(x, context, context, need_weights=False)
        return self.norm(x + attended)


class BatchFirstCrossAttention(nn.Module):
    """Text reads image patches, `[B, L, C]` throughout; the two streams have different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = TokenEncoder(40, 16)
        self.image_encoder = PatchEncoder(3, 12)
        self.block = BatchFirstBlock(16, 12)
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        fused = self.block(self.text_encoder(text), self.image_encoder(image))
        return self.head(fused.mean(dim=1))


class SequenceFirstCrossAttention(nn.Module):
    """Audio reads video, `[L, B, C]` throughout, as in models written before `batch_first` existed."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_proj = nn.Linear(6, 16)
        self.video_proj = nn.Linear(10, 16)
        self.cross = nn.MultiheadAttention(16, 2, dropout=0.1)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        query, memory = self.audio_proj(audio), self.video_proj(video)
        attended, _ = self.cross(query, memory, memory)
        return self.head(self.norm(query + attended)[0])


class HandWrittenAttention(nn.Module):
    def __init__(self, features: int, context_features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(features, features)
        self.key_value = nn.Linear(context_features, 2 * features)
        self.out = nn.Linear(features, features)
        self.dropout = nn.Dropout(0.1)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, features = x.shape
        return x.view(batch, length, self.heads, features // self.heads).transpose(1, 2)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        query = self._split(self.query(x))
        key, value = (self._split(part) for part in self.key_value(context).chunk(2, dim=-1))
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
        mixed = self.dropout(scores.softmax(dim=-1)) @ value
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class HandWrittenBlock(nn.Module):
    def __init__(self, features: int, context_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.attention = HandWrittenAttention(features, context_features, heads=2)
        self.mlp = nn.Sequential(nn.Linear(features, 24), nn.GELU(), nn.Linear(24, features))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm(x), context)
        return x + self.mlp(x)


class HandWrittenCrossAttention(nn.Module):
    """Two layers of QK and PV written out; the text stream stays the text stream through both."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = TokenEncoder(40, 16)
        self.image_encoder = PatchEncoder(3, 12)
        self.blocks = nn.ModuleList([HandWrittenBlock(16, 12), HandWrittenBlock(16, 12)])
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x, context = self.text_encoder(text), self.image_encoder(image)
        for block in self.blocks:
            x = block(x, context)
        return self.head(x[:, 0])


CASES = (
    ZooCase(
        name="cross_attention_batch_first",
        build=BatchFirstCrossAttention,
        inputs=image_and_text,
        modalities=MODALITIES,
        points=(point("block", "attention", pooled(side("text", 16), side("image", 12))),),
        normalize="text",
        stage=1,
    ),
    ZooCase(
        name="cross_attention_sequence_first",
        build=SequenceFirstCrossAttention,
        inputs=lambda batch: (torch.randn(7, batch, 6), torch.randn(4, batch, 10)),
        modalities={"audio": ["audio"], "video": ["video"]},
        points=(point("", "attention", pooled(side("audio", 16), side("video", 16))),),
        normalize="audio",
        stage=1,
    ),
    ZooCase(
        name="cross_attention_by_hand",
        build=HandWrittenCrossAttention,
        inputs=image_and_text,
        modalities=MODALITIES,
        # Taken at the owner's inputs: 16 and 12 channels before the projections, never per head.
        points=(
            point(
                "blocks.0.attention",
                "attention",
                pooled(side("image", 12), side("text", 16)),
                calls=2,
                level="middle",
            ),
            point(
                "blocks.1.attention",
                "attention",
                pooled(side("image", 12), side("text", 16)),
                calls=2,
                level="late",
            ),
        ),
        normalize="image",
        against="text",
        stage=1,
    ),
)
