"""Python in the way: forwards that ask whether they train, or how large their inputs are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, flat, point, side
from ._parts import ImageEncoder, MapEncoder, VectorEncoder


class TrainingBranch(nn.Module):
    """Noise and an auxiliary head in training only; the two modes return different structures."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 10)
        self.table_encoder = VectorEncoder(10, 6)
        self.head = nn.Linear(16, 5)
        self.auxiliary = nn.Linear(10, 5)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        features = self.image_encoder(image)
        if self.training:
            features = features + 0.1 * torch.randn_like(features)
        logits = self.head(torch.cat([features, self.table_encoder(table)], dim=1))
        if self.training:
            return logits, self.auxiliary(features)
        return logits


class ShapeBranch(nn.Module):
    """The second map is resized only if it needs to be, and the flattening writes its sizes out."""

    def __init__(self) -> None:
        super().__init__()
        self.optical = MapEncoder(3, 5)
        self.radar = MapEncoder(2, 5)
        self.head = nn.Linear(5 * 4 * 4, 5)

    def forward(self, optical: torch.Tensor, radar: torch.Tensor) -> torch.Tensor:
        a, b = self.optical(optical), self.radar(radar)
        if a.shape[-2:] != b.shape[-2:]:
            b = F.interpolate(b, size=a.shape[-2:], mode="nearest")
        batch, channels, height, width = a.shape
        if channels != b.size(1):
            raise ValueError("optical and radar maps must have equally many channels")
        return self.head((a + b).view(batch, channels * height * width))


CASES = (
    ZooCase(
        name="training_branch",
        build=TrainingBranch,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 10)),
        modalities={"image": ["image"], "table": ["table"]},
        points=(point("", "concat", flat(side("image", 10), side("table", 6))),),
        normalize="image",
        stage=1,
    ),
    ZooCase(
        name="shape_branch",
        build=ShapeBranch,
        inputs=lambda batch: {"optical": torch.randn(batch, 3, 8, 8), "radar": torch.randn(batch, 2, 4, 4)},
        modalities={"optical": ["optical"], "radar": ["radar"]},
        points=(point("", "sum", flat(side("radar", 5, 4, 4), side("optical", 5, 4, 4))),),
        normalize="radar",
        against="optical",
        stage=1,
    ),
)
