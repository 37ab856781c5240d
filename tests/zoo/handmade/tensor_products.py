"""Fusion by multiplication: outer products, bilinear forms, and their low-rank shortcuts."""

from __future__ import annotations

import torch
from torch import nn

from .._case import ZooCase, flat, point, side
from ._parts import ImageEncoder, VectorEncoder


class OuterProduct(nn.Module):
    """Both vectors with a one appended, every product of an entry of one with an entry of the other."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a = torch.cat([a, a.new_ones(a.size(0), 1)], dim=1)
        b = torch.cat([b, b.new_ones(b.size(0), 1)], dim=1)
        return torch.bmm(a.unsqueeze(2), b.unsqueeze(1)).flatten(1)


class TensorFusion(nn.Module):
    """Tensor fusion network (Zadeh et al., 2017) on two modalities."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_encoder = VectorEncoder(8, 5)
        self.video_encoder = VectorEncoder(9, 6)
        self.fusion = OuterProduct()
        self.head = nn.Linear(6 * 7, 3)

    def forward(self, audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        return self.head(self.fusion(self.audio_encoder(audio), self.video_encoder(video)))


class LowRankTensorFusion(nn.Module):
    """The outer product of three modalities through rank-4 factors (Liu et al., 2018)."""

    def __init__(self, rank: int = 4, out_features: int = 7) -> None:
        super().__init__()
        self.audio_factor = nn.Parameter(torch.randn(rank, 6, out_features) * 0.3)
        self.video_factor = nn.Parameter(torch.randn(rank, 7, out_features) * 0.3)
        self.text_factor = nn.Parameter(torch.randn(rank, 8, out_features) * 0.3)
        self.rank_weights = nn.Parameter(torch.randn(1, rank) * 0.3)
        self.bias = nn.Parameter(torch.zeros(1, out_features))

    @staticmethod
    def _with_one(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.ones(x.shape[0], 1, dtype=x.dtype), x], dim=1)

    def forward(self, audio: torch.Tensor, video: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        audio_ranks = torch.matmul(self._with_one(audio), self.audio_factor)
        video_ranks = torch.matmul(self._with_one(video), self.video_factor)
        text_ranks = torch.matmul(self._with_one(text), self.text_factor)
        product = audio_ranks * video_ranks * text_ranks
        return torch.matmul(self.rank_weights, product.permute(1, 0, 2)).squeeze(1) + self.bias


class LowRankBilinear(nn.Module):
    """Hadamard product of two projections (Kim et al., 2017): the low-rank shortcut to a bilinear form."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 8)
        self.image_proj = nn.Linear(8, 10)
        self.question_proj = nn.Linear(6, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, image: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        image_features = torch.tanh(self.image_proj(self.image_encoder(image)))
        question_features = torch.tanh(self.question_proj(question))
        return self.head(torch.mul(image_features, question_features))


class VQABilinear(nn.Module):
    """`nn.Bilinear` over image and question features."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 8)
        self.question_encoder = VectorEncoder(6, 5)
        self.bilinear = nn.Bilinear(8, 5, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, image: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        joint = self.bilinear(self.image_encoder(image), self.question_encoder(question))
        return self.head(torch.relu(joint))


class MultiplicativeInteraction(nn.Module):
    """`y = W(z) x + b(z)`, where z generates the weights (Jayakumar et al., 2020)."""

    def __init__(self, x_features: int, z_features: int, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features
        self.weight = nn.Linear(z_features, out_features * x_features)
        self.bias = nn.Linear(z_features, out_features)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        weight = self.weight(z).view(z.size(0), self.out_features, x.size(1))
        return torch.bmm(weight, x.unsqueeze(2)).squeeze(2) + self.bias(z)


class InteractionClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sensor_encoder = VectorEncoder(9, 6)
        self.context_encoder = VectorEncoder(7, 5)
        self.interaction = MultiplicativeInteraction(6, 5, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, sensor: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        joint = self.interaction(self.sensor_encoder(sensor), self.context_encoder(context))
        return self.head(torch.relu(joint))


CASES = (
    ZooCase(
        name="tensor_fusion",
        build=TensorFusion,
        inputs=lambda batch: (torch.randn(batch, 8), torch.randn(batch, 9)),
        modalities={"audio": ["audio"], "video": ["video"]},
        # Taken at the owner's inputs, before the ones are appended.
        points=(point("fusion", "matmul", flat(side("audio", 5), side("video", 6))),),
        normalize="audio",
    ),
    ZooCase(
        name="low_rank_tensor_fusion",
        build=LowRankTensorFusion,
        inputs=lambda batch: (torch.randn(batch, 5), torch.randn(batch, 6), torch.randn(batch, 7)),
        modalities={"audio": ["audio"], "video": ["video"], "text": ["text"]},
        # The operands are [rank, batch, out] products with parameters, whose channel axis no layer declares:
        # RegBN goes at the inputs instead, the paper's early placement.
        points=(
            point("", "product", meets=("audio", "video"), level="middle", selected=False, sites_known=False),
            point("", "product", meets=("audio+video", "text"), selected=False, sites_known=False),
        ),
        pair_sites=(flat(side("audio", 5), side("video", 6)),),
        rules=({"id": "early", "pair": {"f": "input:audio", "g": "input:video"}},),
        normalize="audio",
    ),
    ZooCase(
        name="low_rank_bilinear",
        build=LowRankBilinear,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 6)),
        modalities={"image": ["image"], "question": ["question"]},
        points=(point("", "product", flat(side("image", 10), side("question", 10))),),
        normalize="image",
    ),
    ZooCase(
        name="vqa_bilinear",
        build=VQABilinear,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 6)),
        modalities={"image": ["image"], "question": ["question"]},
        points=(point("", "bilinear", flat(side("image", 8), side("question", 5))),),
        normalize="image",
    ),
    ZooCase(
        name="multiplicative_interaction",
        build=InteractionClassifier,
        inputs=lambda batch: (torch.randn(batch, 9), torch.randn(batch, 7)),
        modalities={"sensor": ["sensor"], "context": ["context"]},
        # The product contracts the sensor's axis away and keeps the axis that the context generated, so the
        # bias, also the context's, meets nothing new.
        points=(point("interaction", "matmul", flat(side("sensor", 6), side("context", 5))),),
        normalize="sensor",
    ),
)
