"""Compact and factorised bilinear pooling, tensor contractions, and correlations between positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, flat, point, pooled, side, tokens
from ._parts import ImageEncoder, MapEncoder, PatchEncoder, TokenEncoder, VectorEncoder


class CountSketch(nn.Module):
    """A random sparse projection that keeps inner products (Charikar et al., 2002)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        place = torch.randint(0, out_features, (in_features,))
        sign = torch.randint(0, 2, (in_features,)) * 2.0 - 1.0
        self.register_buffer("sketch", F.one_hot(place, out_features).float() * sign[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.sketch


class CompactBilinear(nn.Module):
    """Multimodal compact bilinear pooling (Fukui et al., 2016): the sketch of an outer product, by its spectrum."""

    def __init__(self, a_features: int, b_features: int, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features
        self.sketch_a = CountSketch(a_features, out_features)
        self.sketch_b = CountSketch(b_features, out_features)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft(self.sketch_a(a)) * torch.fft.rfft(self.sketch_b(b))
        joint = torch.fft.irfft(spectrum, n=self.out_features)
        joint = torch.sign(joint) * torch.sqrt(joint.abs() + 1e-8)
        return F.normalize(joint, dim=-1)


class CompactBilinearVQA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 8)
        self.question_encoder = nn.EmbeddingBag(40, 6)
        self.pooling = CompactBilinear(8, 6, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        return self.head(self.pooling(self.image_encoder(image), self.question_encoder(question)))


class FactorisedBilinear(nn.Module):
    """Multimodal factorised bilinear pooling (Yu et al., 2017): a product, and sums over its factors."""

    def __init__(self, factors: int = 3, out_features: int = 5) -> None:
        super().__init__()
        self.factors, self.out_features = factors, out_features
        self.image_encoder = ImageEncoder(3, 8)
        self.question_encoder = nn.EmbeddingBag(40, 6)
        self.image_proj = nn.Linear(8, factors * out_features)
        self.question_proj = nn.Linear(6, factors * out_features)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(out_features, 4)

    def forward(self, image: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        image = self.image_proj(self.image_encoder(image))
        question = self.question_proj(self.question_encoder(question))
        joint = self.dropout(torch.mul(image, question))
        joint = joint.view(-1, self.out_features, self.factors).sum(2)
        joint = torch.sqrt(F.relu(joint) + 1e-8) - torch.sqrt(F.relu(-joint) + 1e-8)
        return self.head(F.normalize(joint))


class TuckerFusion(nn.Module):
    """A full third-order core tensor contracts both vectors at once (the Tucker form of MUTAN)."""

    def __init__(self, a_features: int, b_features: int, out_features: int) -> None:
        super().__init__()
        self.core = nn.Parameter(torch.randn(a_features, b_features, out_features) * 0.1)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,bj,ijk->bk", a, b, self.core)


class TuckerClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.audio_encoder = VectorEncoder(8, 6)
        self.video_encoder = VectorEncoder(9, 5)
        self.fusion = TuckerFusion(6, 5, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        return self.head(self.fusion(self.audio_encoder(audio), self.video_encoder(video)))


class Mutan(nn.Module):
    """MUTAN (Ben-younes et al., 2017): a sum of rank-one products, each with projections of its own."""

    def __init__(self, rank: int = 3, hidden: int = 6) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 8)
        self.question_encoder = nn.EmbeddingBag(40, 7)
        self.image_projections = nn.ModuleList([nn.Linear(8, hidden) for _ in range(rank)])
        self.question_projections = nn.ModuleList([nn.Linear(7, hidden) for _ in range(rank)])
        self.head = nn.Linear(hidden, 4)

    def forward(self, image: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        image, question = self.image_encoder(image), self.question_encoder(question)
        joint = image.new_zeros(image.size(0), self.head.in_features)
        for of_image, of_question in zip(self.image_projections, self.question_projections, strict=True):
            joint = joint + torch.tanh(of_image(image)) * torch.tanh(of_question(question))
        return self.head(torch.tanh(joint))


class FunctionalBilinear(nn.Module):
    """`F.bilinear` with a weight of its own, between the outputs of two recurrent encoders."""

    def __init__(self) -> None:
        super().__init__()
        self.speech = nn.GRU(6, 5, batch_first=True, bidirectional=True)
        self.text = nn.LSTM(4, 7, batch_first=True)
        self.weight = nn.Parameter(torch.randn(8, 10, 7) * 0.1)
        self.bias = nn.Parameter(torch.zeros(8))
        self.head = nn.Linear(8, 3)

    def forward(self, speech: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        _, speech_state = self.speech(speech)
        speech_state = torch.cat([speech_state[0], speech_state[1]], dim=-1)
        _, (text_state, _) = self.text(text)
        return self.head(torch.relu(F.bilinear(speech_state, text_state[-1], self.weight, self.bias)))


class BilinearAttention(nn.Module):
    """One glimpse of a bilinear attention network (Kim et al., 2018): scores for every pair, and a pooling by them."""

    def __init__(self, v_features: int, q_features: int, hidden: int) -> None:
        super().__init__()
        self.v_proj = nn.Linear(v_features, hidden)
        self.q_proj = nn.Linear(q_features, hidden)
        self.h = nn.Parameter(torch.randn(hidden) * 0.3)

    def forward(self, v: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        v_, q_ = torch.relu(self.v_proj(v)), torch.relu(self.q_proj(q))
        scores = torch.einsum("bvk,bqk->bvq", v_ * self.h, q_)
        weights = torch.softmax(scores.flatten(1), dim=1).view_as(scores)
        return torch.einsum("bvk,bvq,bqk->bk", v_, weights, q_)


class BilinearAttentionVQA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = PatchEncoder(3, 12)
        self.text_encoder = TokenEncoder(40, 10)
        self.attention = BilinearAttention(12, 10, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(self.image_encoder(image), self.text_encoder(text)))


class CorrelationVolume(nn.Module):
    """All-pairs correlation of two views of one shared encoder, looked at as maps (Teed and Deng, 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lookup = nn.Conv2d(16, channels, 1)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = left.shape
        correlation = torch.einsum("bchw,bcuv->bhwuv", left, right) / channels**0.5
        return self.lookup(correlation.reshape(batch, height * width, height, width))


class StereoMatching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = MapEncoder(3, 6)
        self.correlation = CorrelationVolume(5)
        self.head = nn.Conv2d(5, 1, 1)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.correlation(self.encoder(left), self.encoder(right))))


class KroneckerFusion(nn.Module):
    """Gated Kronecker product of two vectors as survival models write it (Chen et al., 2020)."""

    def __init__(self, a_features: int, b_features: int) -> None:
        super().__init__()
        self.gate_a = nn.Bilinear(a_features, b_features, a_features)
        self.gate_b = nn.Bilinear(a_features, b_features, b_features)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a = torch.sigmoid(self.gate_a(a, b)) * a
        b = torch.sigmoid(self.gate_b(a, b)) * b
        a = torch.cat((a, torch.ones(a.shape[0], 1)), 1)
        b = torch.cat((b, torch.ones(b.shape[0], 1)), 1)
        return torch.bmm(a.unsqueeze(2), b.unsqueeze(1)).flatten(start_dim=1)


class PathomicFusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.histology = ImageEncoder(3, 6)
        self.genomics = nn.Sequential(nn.Linear(9, 5), nn.ELU(), nn.AlphaDropout(0.1))
        self.fusion = KroneckerFusion(6, 5)
        self.hazard = nn.Linear(7 * 6, 1)

    def forward(self, slide: torch.Tensor, genes: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.hazard(self.fusion(self.histology(slide), self.genomics(genes))))


IMAGE_AND_QUESTION = {"image": ["image"], "question": ["question"]}
AUDIO_AND_VIDEO = {"audio": ["audio"], "video": ["video"]}


def image_and_question(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 8, 8), tokens(batch, 5, vocabulary=40)


CASES = (
    ZooCase(
        name="compact_bilinear",
        build=CompactBilinearVQA,
        inputs=image_and_question,
        modalities=IMAGE_AND_QUESTION,
        # Two complex spectra are multiplied, which RegBN has no statistics for; it goes between the encoders.
        points=(point("pooling", "product", meets=("image", "question"), selected=False, sites_known=False),),
        pair_sites=(flat(side("image", 8), side("question", 6)),),
        rules=({"id": "encoders", "pair": {"f": "module:image_encoder", "g": "module:question_encoder"}},),
        normalize="image",
    ),
    ZooCase(
        name="factorised_bilinear",
        build=FactorisedBilinear,
        inputs=image_and_question,
        modalities=IMAGE_AND_QUESTION,
        points=(point("", "product", flat(side("image", 15), side("question", 15))),),
        normalize="image",
    ),
    ZooCase(
        name="tucker_fusion",
        build=TuckerClassifier,
        inputs=lambda batch: (torch.randn(batch, 8), torch.randn(batch, 9)),
        modalities=AUDIO_AND_VIDEO,
        points=(point("fusion", "matmul", flat(side("audio", 6), side("video", 5))),),
        normalize="audio",
    ),
    ZooCase(
        name="mutan",
        build=Mutan,
        inputs=image_and_question,
        modalities=IMAGE_AND_QUESTION,
        # One product per rank, each of layers of its own; their sum joins what is already joined.
        points=tuple(point("", "product", flat(side("image", 6), side("question", 6)), level=None) for _ in range(3))
        + tuple(
            point("", "sum", meets=("image+question",), level="remeeting", selected=False, sites_known=False)
            for _ in range(2)
        ),
        rules=({"id": "ranks", "match": {"kind": "product"}, "normalize": "image"},),
        normalize="image",
    ),
    ZooCase(
        name="functional_bilinear",
        build=FunctionalBilinear,
        inputs=lambda batch: (torch.randn(batch, 5, 6), torch.randn(batch, 3, 4)),
        modalities={"speech": ["speech"], "text": ["text"]},
        points=(point("", "bilinear", flat(side("speech", 10), side("text", 7))),),
        normalize="speech",
    ),
    ZooCase(
        name="bilinear_attention",
        build=BilinearAttentionVQA,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), tokens(batch, 5, vocabulary=40)),
        modalities={"image": ["image"], "text": ["text"]},
        # The second product weighs both streams by the scores of the first: one attention.
        points=(point("attention", "attention", pooled(side("image", 12), side("text", 10)), calls=2),),
        normalize="image",
    ),
    ZooCase(
        name="correlation_volume",
        build=StereoMatching,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 3, 8, 8)),
        modalities={"left": ["left"], "right": ["right"]},
        points=(point("correlation", "matmul", flat(side("left", 6, 4, 4), side("right", 6, 4, 4))),),
        normalize="left",
    ),
    ZooCase(
        name="pathomic_fusion",
        build=PathomicFusion,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 9)),
        modalities={"slide": ["slide"], "genes": ["genes"]},
        # Both gates are bilinear; what they scale keeps its home, so the Kronecker product is of slide and genes;
        # RegBN goes before the one that is appended to each.
        points=(
            point("fusion", "bilinear", flat(side("slide", 6), side("genes", 5)), level="middle"),
            point("fusion", "bilinear", flat(side("slide", 6), side("genes", 5)), level="middle"),
            point("fusion", "matmul", flat(side("slide", 6), side("genes", 5))),
        ),
        normalize="slide",
    ),
)
