"""Two branches and one meeting: the classifiers that most multimodal papers start from."""

from __future__ import annotations

import torch
from torch import nn

from .._case import ZooCase, flat, point, side
from ._parts import ImageEncoder, MapEncoder, VectorEncoder

MODALITIES = {"image": ["image"], "table": ["table"]}


def image_and_table(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 8, 8), torch.randn(batch, 10)


class ConcatClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 16)
        self.table_encoder = VectorEncoder(10, 8)
        self.head = nn.Linear(24, 5)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        fused = torch.cat([self.image_encoder(image), self.table_encoder(table)], dim=1)
        return self.head(fused)


class SumClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 12)
        self.table_encoder = VectorEncoder(10, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.image_encoder(image) + self.table_encoder(table)))


class GatedClassifier(nn.Module):
    """The table decides how much of each image feature passes."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 12)
        self.table_encoder = VectorEncoder(10, 8)
        self.gate = nn.Linear(8, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        features = self.image_encoder(image)
        gate = torch.sigmoid(self.gate(self.table_encoder(table)))
        return self.head(features * gate)


class FiLMClassifier(nn.Module):
    """Feature-wise linear modulation of a feature map by a vector (Perez et al., 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = MapEncoder(3, 6)
        self.generator = nn.Linear(10, 12)
        self.head = nn.Linear(6, 5)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        features = self.image_encoder(image)
        gamma, beta = self.generator(table).chunk(2, dim=1)
        features = gamma[:, :, None, None] * features + beta[:, :, None, None]
        return self.head(torch.relu(features).mean(dim=(2, 3)))


class MapConcatClassifier(nn.Module):
    """Feature maps of different channel counts, joined along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb_encoder = MapEncoder(3, 6)
        self.depth_encoder = MapEncoder(1, 4)
        self.fuse = nn.Conv2d(10, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, rgb: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        fused = self.fuse(torch.cat((self.rgb_encoder(rgb), self.depth_encoder(depth)), dim=1))
        return self.head(torch.relu(fused).mean(dim=(-2, -1)))


class NormAndDropoutClassifier(nn.Module):
    """Batch statistics and random draws on both sides of the meeting: train and eval differ everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.table_encoder = nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3))
        self.norm = nn.BatchNorm1d(14)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(14, 5)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        fused = torch.cat([self.image_encoder(image), self.table_encoder(table)], dim=-1)
        return self.head(self.dropout(self.norm(fused)))


CASES = (
    ZooCase(
        name="concat",
        build=ConcatClassifier,
        inputs=image_and_table,
        modalities=MODALITIES,
        points=(point("", "concat", flat(side("image", 16), side("table", 8))),),
        normalize="image",
        against="table",
        stage=1,
    ),
    ZooCase(
        name="sum",
        build=SumClassifier,
        inputs=image_and_table,
        modalities=MODALITIES,
        points=(point("", "sum", flat(side("table", 12), side("image", 12))),),
        normalize="table",
        stage=1,
    ),
    ZooCase(
        name="gated",
        build=GatedClassifier,
        inputs=image_and_table,
        modalities=MODALITIES,
        # g is the gate before the sigmoid: what `gate` returns, not what the table encoder returns.
        points=(point("", "product", flat(side("image", 12), side("table", 12))),),
        normalize="image",
        stage=1,
    ),
    ZooCase(
        name="film",
        build=FiLMClassifier,
        inputs=image_and_table,
        modalities=MODALITIES,
        points=(point("", "product", flat(side("image", 6, 4, 4), side("table", 6)), calls=2),),
        normalize="image",
        stage=1,
    ),
    ZooCase(
        name="map_concat",
        build=MapConcatClassifier,
        inputs=lambda batch: {"rgb": torch.randn(batch, 3, 8, 8), "depth": torch.randn(batch, 1, 8, 8)},
        modalities={"rgb": ["rgb"], "depth": ["depth"]},
        points=(point("", "concat", flat(side("rgb", 6, 4, 4), side("depth", 4, 4, 4))),),
        normalize="rgb",
        stage=1,
    ),
    ZooCase(
        name="batchnorm_dropout",
        build=NormAndDropoutClassifier,
        inputs=image_and_table,
        modalities=MODALITIES,
        points=(point("", "concat", flat(side("image", 8), side("table", 6))),),
        normalize="image",
        stage=1,
    ),
)
