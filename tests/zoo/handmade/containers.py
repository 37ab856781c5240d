"""Inputs that arrive inside something: lists and dicts."""

from __future__ import annotations

import torch
from torch import nn

from .._case import ZooCase, flat, point, side
from ._parts import ImageEncoder, VectorEncoder


class ListInputs(nn.Module):
    """One list with one tensor per modality, and one encoder for each, as MultiBench-style models have."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleList([VectorEncoder(9, 7), ImageEncoder(1, 11)])
        self.head = nn.Linear(18, 4)

    def forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        features = [encoder(x) for encoder, x in zip(self.encoders, inputs, strict=True)]
        return self.head(torch.cat(features, dim=1))


class ConcatFusion(nn.Module):
    """The fusion has a module of its own that takes a dict of features: the owner is not the root."""

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([features[name] for name in sorted(features)], dim=1)


class DictInputs(nn.Module):
    """One dict with one tensor per modality, one encoder for each in a `ModuleDict`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"audio": VectorEncoder(9, 7), "video": ImageEncoder(1, 11)})
        self.fusion = ConcatFusion()
        self.head = nn.Linear(18, 4)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = {name: encoder(batch[name]) for name, encoder in self.encoders.items()}
        fused = self.fusion(features)
        return {"features": fused, "logits": self.head(fused)}


CASES = (
    ZooCase(
        name="list_inputs",
        build=ListInputs,
        inputs=lambda batch: ([torch.randn(batch, 9), torch.randn(batch, 1, 8, 8)],),
        modalities={"audio": ["inputs.0"], "video": ["inputs.1"]},
        points=(point("", "concat", flat(side("video", 11), side("audio", 7))),),
        normalize="video",
        stage=1,
    ),
    ZooCase(
        name="dict_inputs",
        build=DictInputs,
        inputs=lambda batch: ({"audio": torch.randn(batch, 9), "video": torch.randn(batch, 1, 8, 8)},),
        modalities={"audio": ["batch.audio"], "video": ["batch.video"]},
        points=(point("fusion", "concat", flat(side("video", 11), side("audio", 7))),),
        normalize="video",
        stage=1,
    ),
)
