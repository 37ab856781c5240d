"""Unequal branches: three of them, graphs, volumes, recurrent ones, siamese ones, and inputs in records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from .._case import ZooCase, flat, point, side, tokens
from ._parts import ImageEncoder, VectorEncoder


class ThreeModalities(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 8)
        self.audio_encoder = VectorEncoder(9, 6)
        self.text_encoder = nn.EmbeddingBag(40, 5)
        self.head = nn.Linear(19, 4)

    def forward(self, image: torch.Tensor, audio: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        features = [self.image_encoder(image), self.audio_encoder(audio), self.text_encoder(text)]
        return self.head(torch.cat(features, dim=-1))


class GraphConvolution(nn.Module):
    """Sums messages along edges into the nodes they lead to."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.message = nn.Linear(in_features, features)
        self.self_loop = nn.Linear(in_features, features)

    def forward(self, nodes: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        source, target = edge_index
        out = self.self_loop(nodes)
        return torch.relu(out.index_add(0, target, self.message(nodes)[source]))


class GraphAndImage(nn.Module):
    """Molecule-like graphs in one flat batch, as PyTorch Geometric lays them out, and an image each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = GraphConvolution(4, 8)
        self.conv2 = GraphConvolution(8, 8)
        self.image_encoder = ImageEncoder(3, 10)
        self.head = nn.Linear(18, 4)

    def forward(
        self,
        nodes: torch.Tensor,
        edge_index: torch.Tensor,
        graph_ids: torch.Tensor,
        image: torch.Tensor,
    ) -> torch.Tensor:
        nodes = self.conv2(self.conv1(nodes, edge_index), edge_index)
        pooled_nodes = nodes.new_zeros(image.shape[0], nodes.shape[1]).index_add(0, graph_ids, nodes)
        return self.head(torch.cat([pooled_nodes, self.image_encoder(image)], dim=1))


def graphs_and_images(batch: int) -> dict[str, torch.Tensor]:
    size = 5
    ring = torch.stack([torch.arange(size), (torch.arange(size) + 1) % size])
    return {
        "nodes": torch.randn(batch * size, 4),
        "edge_index": torch.cat([ring + size * graph for graph in range(batch)], dim=1),
        "graph_ids": torch.arange(batch).repeat_interleave(size),
        "image": torch.randn(batch, 3, 8, 8),
    }


class AffineTransform(nn.Module):
    """DAFT (Poelsterl et al., 2021): pooled volume and table together scale and shift the volume's channels."""

    def __init__(self, channels: int, table_features: int) -> None:
        super().__init__()
        self.bottleneck = nn.Linear(channels + table_features, 4, bias=False)
        self.parameters_of = nn.Linear(4, 2 * channels, bias=False)

    def forward(self, volume: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        squeezed = F.adaptive_avg_pool3d(volume, 1).flatten(1)
        hidden = torch.relu(self.bottleneck(torch.cat([squeezed, table], dim=1)))
        scale, shift = self.parameters_of(hidden)[:, :, None, None, None].chunk(2, dim=1)
        return volume * scale + shift


class VolumeAndTable(nn.Module):
    """A 3D scan and a patient's record."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(1, 6, 3, stride=2, padding=1), nn.BatchNorm3d(6), nn.ReLU())
        self.transform = AffineTransform(6, 5)
        self.stage = nn.Sequential(nn.Conv3d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.head = nn.Linear(8, 3)

    def forward(self, volume: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.head(self.stage(self.transform(self.stem(volume), table)))


class PackedLSTMAndCNN(nn.Module):
    """Reports of different lengths through a packed LSTM, an X-ray through a CNN."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 6)
        self.lstm = nn.LSTM(6, 10, batch_first=True)
        self.image_encoder = ImageEncoder(1, 8)
        self.head = nn.Linear(18, 4)

    def forward(self, report: torch.Tensor, lengths: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(self.embedding(report), lengths, batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return self.head(torch.cat([hidden[-1], self.image_encoder(image)], dim=1))


def reports_and_images(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tokens(batch, 6, vocabulary=40), 6 - torch.arange(batch), torch.randn(batch, 1, 8, 8)


class Siamese(nn.Module):
    """Both views through one encoder in one batch, taken apart again, then joined."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ImageEncoder(1, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        features = self.encoder(torch.cat([before, after], dim=0))
        first, second = features.chunk(2, dim=0)
        return self.head(torch.cat([first, second], dim=1))


class EarlyConcat(nn.Module):
    """The raw inputs are stacked as channels of one image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ImageEncoder(4, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, rgb: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(torch.cat([rgb, depth], dim=1)))


class InPlaceSum(nn.Module):
    """The sum overwrites one of its operands."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb_encoder = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.depth_encoder = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, rgb: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        x = self.rgb_encoder(rgb)
        x += self.depth_encoder(depth)
        return self.head(torch.relu(x).mean(dim=(2, 3)))


class StackedMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 8)
        self.table_encoder = VectorEncoder(10, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.head(torch.stack([self.image_encoder(image), self.table_encoder(table)], dim=1).mean(dim=1))


class CosineMatching(nn.Module):
    """A score per pair and nothing after it."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 8)
        self.table_encoder = VectorEncoder(10, 8)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return F.cosine_similarity(self.image_encoder(image), self.table_encoder(table), dim=-1)


class AlignedConcat(nn.Module):
    """A concatenation, and a loss in the forward that pulls the branches together."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 8)
        self.table_encoder = VectorEncoder(10, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> dict[str, torch.Tensor]:
        image, table = self.image_encoder(image), self.table_encoder(table)
        logits = self.head(torch.cat([image, table], dim=1))
        return {"logits": logits, "alignment": F.mse_loss(image, table)}


@dataclass
class Record:
    image: torch.Tensor
    table: torch.Tensor


class Pair(NamedTuple):
    image: torch.Tensor
    table: torch.Tensor


class RecordInputs(nn.Module):
    """One argument with named fields, be it a dataclass or a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 8)
        self.table_encoder = VectorEncoder(10, 6)
        self.head = nn.Linear(14, 4)

    def forward(self, batch: Record | Pair) -> torch.Tensor:
        features = self.image_encoder(batch.image), self.table_encoder(batch.table)
        return self.head(torch.cat(features, dim=1))


IMAGE_AND_TABLE = {"image": ["image"], "table": ["table"]}
RGB_AND_DEPTH = {"rgb": ["rgb"], "depth": ["depth"]}
RECORD = {"image": ["batch.image"], "table": ["batch.table"]}


def image_and_table(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 8, 8), torch.randn(batch, 10)


def rgb_and_depth(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 8, 8), torch.randn(batch, 1, 8, 8)


CASES = (
    ZooCase(
        name="three_modalities",
        build=ThreeModalities,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 9), tokens(batch, 5, vocabulary=40)),
        modalities={"image": ["image"], "audio": ["audio"], "text": ["text"]},
        points=(
            point(
                "",
                "concat",
                flat(side("image", 8), side("audio", 6)),
                flat(side("image", 8), side("text", 5)),
                flat(side("audio", 6), side("text", 5)),
            ),
        ),
        rules=({"id": "all", "match": {"kind": "concat"}, "pairs": "all"},),
        normalize="image",
    ),
    ZooCase(
        name="graph_and_image",
        build=GraphAndImage,
        inputs=graphs_and_images,
        modalities={"graph": ["nodes"], "image": ["image"]},
        points=(point("", "concat", flat(side("graph", 8), side("image", 10))),),
        normalize="graph",
    ),
    ZooCase(
        name="volume_and_table",
        build=VolumeAndTable,
        inputs=lambda batch: (torch.randn(batch, 1, 8, 8, 8), torch.randn(batch, 5)),
        modalities={"volume": ["volume"], "table": ["table"]},
        # Scale and shift hold both modalities already: a gate that re-enters is no second point.
        points=(point("transform", "concat", flat(side("volume", 6), side("table", 5))),),
        normalize="volume",
    ),
    ZooCase(
        name="packed_lstm_and_cnn",
        build=PackedLSTMAndCNN,
        inputs=reports_and_images,
        modalities={"report": ["report"], "image": ["image"]},
        points=(point("", "concat", flat(side("image", 8), side("report", 10))),),
        normalize="image",
    ),
    ZooCase(
        name="siamese",
        build=Siamese,
        inputs=lambda batch: (torch.randn(batch, 1, 8, 8), torch.randn(batch, 1, 8, 8)),
        modalities={"before": ["before"], "after": ["after"]},
        points=(point("", "concat", flat(side("before", 8), side("after", 8))),),
        normalize="after",
    ),
    ZooCase(
        name="early_concat",
        build=EarlyConcat,
        inputs=rgb_and_depth,
        modalities=RGB_AND_DEPTH,
        # Early (no parameters before it) and late (the only one) at once: the level is left open.
        points=(point("", "concat", flat(side("rgb", 3, 8, 8), side("depth", 1, 8, 8)), level=None),),
        normalize="rgb",
    ),
    ZooCase(
        name="in_place_sum",
        build=InPlaceSum,
        inputs=rgb_and_depth,
        modalities=RGB_AND_DEPTH,
        points=(point("", "sum", flat(side("rgb", 6, 4, 4), side("depth", 6, 4, 4))),),
        normalize="rgb",
    ),
    ZooCase(
        name="stacked_mean",
        build=StackedMean,
        inputs=image_and_table,
        modalities=IMAGE_AND_TABLE,
        points=(point("", "concat", flat(side("image", 8), side("table", 8))),),
        normalize="image",
    ),
    ZooCase(
        name="cosine_matching",
        build=CosineMatching,
        inputs=image_and_table,
        modalities=IMAGE_AND_TABLE,
        points=(point("", "similarity", flat(side("image", 8), side("table", 8))),),
        normalize="image",
    ),
    ZooCase(
        name="alignment_loss",
        build=AlignedConcat,
        inputs=image_and_table,
        modalities=IMAGE_AND_TABLE,
        # A loss is reported and left alone. It takes no part in the order of levels here: both run in parallel.
        points=(
            point("", "concat", flat(side("image", 8), side("table", 8))),
            point("", "loss", meets=("image", "table"), selected=False, sites_known=False),
        ),
        rules=({"id": "join", "match": {"kind": "concat"}, "normalize": "image"},),
        normalize="image",
    ),
    ZooCase(
        name="dataclass_inputs",
        build=RecordInputs,
        inputs=lambda batch: (Record(*image_and_table(batch)),),
        modalities=RECORD,
        points=(point("", "concat", flat(side("image", 8), side("table", 6))),),
        normalize="image",
    ),
    ZooCase(
        name="namedtuple_inputs",
        build=RecordInputs,
        inputs=lambda batch: (Pair(*image_and_table(batch)),),
        modalities=RECORD,
        points=(point("", "concat", flat(side("image", 8), side("table", 6))),),
        normalize="image",
    ),
)
