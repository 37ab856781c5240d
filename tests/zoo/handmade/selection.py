"""Fusion by choosing: maxima, masks, sampled features, learned weights, experts that a router calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, flat, point, pooled, side, tokens
from ._parts import ImageEncoder, PatchEncoder, TokenEncoder, VectorEncoder


class EmbraceNet(nn.Module):
    """Every feature is taken from one modality, drawn at random (Choi and Lee, 2019)."""

    def __init__(self, sizes: tuple[int, ...], features: int) -> None:
        super().__init__()
        self.features = features
        self.docking = nn.ModuleList([nn.Linear(size, features) for size in sizes])

    def forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        docked = torch.stack([F.relu(dock(x)) for dock, x in zip(self.docking, inputs, strict=True)], dim=-1)
        chances = torch.full((docked.size(0), len(inputs)), 1 / len(inputs))
        drawn = torch.multinomial(chances, num_samples=self.features, replacement=True)
        toggles = F.one_hot(drawn, num_classes=len(inputs)).float()
        return torch.sum(docked * toggles, dim=-1)


class EmbraceClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.audio_encoder = VectorEncoder(8, 6)
        self.video_encoder = VectorEncoder(9, 7)
        self.embrace = EmbraceNet((6, 7), 10)
        self.head = nn.Linear(10, 4)

    def forward(self, audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        return self.head(self.embrace([self.audio_encoder(audio), self.video_encoder(video)]))


class MaxFusion(nn.Module):
    """The larger of two features at every place of two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb = nn.Conv2d(3, 6, 3, padding=1)
        self.thermal = nn.Conv2d(1, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, rgb: torch.Tensor, thermal: torch.Tensor) -> torch.Tensor:
        return self.head(torch.maximum(F.relu(self.rgb(rgb)), F.relu(self.thermal(thermal)))).amax(dim=(2, 3))


class ViewPooling(nn.Module):
    """Element-wise maximum over any number of views (Su et al., 2015), one encoder each by name."""

    def __init__(self, sizes: dict[str, int], features: int = 8) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: nn.Linear(size, features) for name, size in sizes.items()})
        self.head = nn.Linear(features, 4)

    def forward(self, views: dict[str, torch.Tensor]) -> torch.Tensor:
        encoded = [torch.relu(self.encoders[name](view)) for name, view in views.items()]
        return self.head(torch.stack(encoded, dim=1).max(dim=1).values)


class FallsBack(nn.Module):
    """Where a report is missing, the image's features stand in for it."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 8)
        self.report_encoder = VectorEncoder(9, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor, report: torch.Tensor, report_mask: torch.Tensor) -> torch.Tensor:
        image, report = self.image_encoder(image), self.report_encoder(report)
        return self.head(torch.where(report_mask[:, None], report, image))


class LearnedPrompt(nn.Module):
    """A missing modality is replaced by a learned vector: that is no meeting. The concatenation is."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 8)
        self.report_encoder = VectorEncoder(9, 6)
        self.absent = nn.Parameter(torch.randn(6))
        self.head = nn.Linear(14, 4)

    def forward(self, image: torch.Tensor, report: torch.Tensor, report_mask: torch.Tensor) -> torch.Tensor:
        report = torch.where(report_mask.unsqueeze(-1), self.report_encoder(report), self.absent)
        return self.head(torch.cat((self.image_encoder(image), report), dim=-1))


class LearnedWeights(nn.Module):
    """A sum with learned softmax weights, one per modality."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"audio": nn.Linear(5, 8), "video": nn.Linear(6, 8), "text": nn.Linear(7, 8)})
        self.weights = nn.Parameter(torch.zeros(3))
        self.head = nn.Linear(8, 4)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(self.weights, dim=0)
        return self.head(sum(w * self.encoders[name](x) for w, (name, x) in zip(weights, inputs.items(), strict=True)))


class LearnedWeightsStacked(nn.Module):
    """The same in one product: all three stacked, scaled along the new axis, and summed over it."""

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.video, self.text = nn.Linear(5, 8), nn.Linear(6, 8), nn.Linear(7, 8)
        self.weights = nn.Parameter(torch.zeros(3, 1, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, audio: torch.Tensor, video: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        every = torch.stack([self.audio(audio), self.video(video), self.text(text)])
        return self.head((every * torch.softmax(self.weights, dim=0)).sum(0))


class AttentionOverModalities(nn.Module):
    """Each sample weighs its modalities by a score of each, computed from that modality alone."""

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.video = nn.Linear(5, 8), nn.Linear(6, 8)
        self.score = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        every = torch.stack([self.audio(audio), self.video(video)], dim=1)
        weights = torch.softmax(self.score(every), dim=1)
        return self.head((weights * every).sum(dim=1))


class Expert(nn.Sequential):
    def __init__(self, features: int) -> None:
        super().__init__(nn.Linear(features, 12), nn.GELU(), nn.Linear(12, features))


class SparseExperts(nn.Module):
    """The best expert for every token, called on its own tokens only, as Switch transformers do."""

    def __init__(self, features: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(features, experts)
        self.experts = nn.ModuleList([Expert(features) for _ in range(experts)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat_x = x.reshape(-1, x.shape[-1])
        chances = torch.softmax(self.router(flat_x), dim=-1)
        best, chosen = chances.max(dim=-1)
        out = torch.zeros_like(flat_x)
        for number, expert in enumerate(self.experts):
            rows = torch.where(chosen == number)[0]
            if rows.numel() > 0:
                out.index_add_(0, rows, best[rows, None] * expert(flat_x[rows]))
        return out.view_as(x)


class LimoeLike(nn.Module):
    """Image and text tokens in one sequence through sparse experts (Mustafa et al., 2022)."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.image_encoder = PatchEncoder(3, features)
        self.text_encoder = TokenEncoder(40, features)
        self.attention = nn.MultiheadAttention(features, 2, batch_first=True)
        self.experts = SparseExperts(features, 3)
        self.head = nn.Linear(features, 4)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.image_encoder(image), self.text_encoder(text)], dim=1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head((x + self.experts(x)).mean(dim=1))


class Router(nn.Module):
    """All experts read the image; the text decides how much of each is heard."""

    def __init__(self, features: int, context: int, experts: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(features, features) for _ in range(experts)])
        self.gate = nn.Linear(context, experts)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        answers = torch.stack([expert(x) for expert in self.experts], dim=1)
        return torch.einsum("be,bec->bc", self.gate(context).softmax(-1), answers)


class TextRouted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 8)
        self.text_encoder = nn.EmbeddingBag(40, 6)
        self.router = Router(8, 6, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.head(self.router(self.image_encoder(image), self.text_encoder(text)))


#: A registry of fusions by name, as configuration-driven codebases keep one.
FUSIONS: dict[str, Callable[[list[torch.Tensor]], torch.Tensor]] = {
    "concat": lambda features: torch.cat(features, dim=-1),
    "sum": lambda features: torch.stack(features).sum(dim=0),
    "average": lambda features: sum(features) / len(features),
    "min": lambda features: torch.minimum(*features),
}


class Configured(nn.Module):
    """Encoders and the fusion are built from a configuration."""

    def __init__(self, sizes: dict[str, int], fusion: str, features: int = 6) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: VectorEncoder(size, features) for name, size in sizes.items()})
        self.fuse = FUSIONS[fusion]
        self.head = nn.LazyLinear(4)
        self({name: torch.zeros(2, size) for name, size in sizes.items()})

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        features = {name: encoder(batch[name]) for name, encoder in self.encoders.items()}
        return self.head(self.fuse(list(features.values())))


AUDIO_AND_VIDEO = {"audio": ["audio"], "video": ["video"]}
IMAGE_AND_TEXT = {"image": ["image"], "text": ["text"]}
IMAGE_AND_REPORT = {"image": ["image"], "report": ["report"]}
THREE = {"audio": ["audio"], "video": ["video"], "text": ["text"]}


def image_and_text(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 8, 8), tokens(batch, 5, vocabulary=40)


def image_and_report(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 8, 8), torch.randn(batch, 9), torch.arange(batch) % 2 == 0


def three(batch: int) -> dict[str, torch.Tensor]:
    return {"audio": torch.randn(batch, 5), "video": torch.randn(batch, 6), "text": torch.randn(batch, 7)}


def configured(name: str, kind: str) -> ZooCase:
    return ZooCase(
        name=f"configured_{name}",
        build=lambda: Configured({"imu": 7, "emg": 5}, name),
        inputs=lambda batch: ({"imu": torch.randn(batch, 7), "emg": torch.randn(batch, 5)},),
        modalities={"imu": ["batch.imu"], "emg": ["batch.emg"]},
        points=(point("", kind, flat(side("imu", 6), side("emg", 6))),),
        normalize="imu",
    )


ALL_PAIRS = {"match": {"kind": "concat"}, "pairs": "all"}

CASES = (
    ZooCase(
        name="embracenet",
        build=EmbraceClassifier,
        inputs=lambda batch: (torch.randn(batch, 8), torch.randn(batch, 9)),
        modalities=AUDIO_AND_VIDEO,
        points=(point("embrace", "concat", flat(side("audio", 10), side("video", 10))),),
        normalize="audio",
    ),
    ZooCase(
        name="max_fusion",
        build=MaxFusion,
        inputs=lambda batch: (torch.randn(batch, 3, 6, 6), torch.randn(batch, 1, 6, 6)),
        modalities={"rgb": ["rgb"], "thermal": ["thermal"]},
        points=(point("", "sum", flat(side("rgb", 6, 6, 6), side("thermal", 6, 6, 6))),),
        normalize="rgb",
    ),
    ZooCase(
        name="view_pooling",
        build=lambda: ViewPooling({"front": 5, "side": 6, "top": 7}),
        inputs=lambda batch: (
            {"front": torch.randn(batch, 5), "side": torch.randn(batch, 6), "top": torch.randn(batch, 7)},
        ),
        modalities={"front": ["views.front"], "side": ["views.side"], "top": ["views.top"]},
        points=(
            point(
                "",
                "concat",
                flat(side("front", 8), side("side", 8)),
                flat(side("front", 8), side("top", 8)),
                flat(side("side", 8), side("top", 8)),
            ),
        ),
        rules=({"id": "all", **ALL_PAIRS},),
        normalize="front",
    ),
    ZooCase(
        name="where_fallback",
        build=FallsBack,
        inputs=image_and_report,
        modalities=IMAGE_AND_REPORT,
        points=(point("", "sum", flat(side("report", 8), side("image", 8))),),
        normalize="image",
    ),
    ZooCase(
        name="where_learned_prompt",
        build=LearnedPrompt,
        inputs=image_and_report,
        modalities=IMAGE_AND_REPORT,
        points=(point("", "concat", flat(side("image", 8), side("report", 6))),),
        normalize="image",
    ),
    ZooCase(
        name="learned_weights",
        build=LearnedWeights,
        inputs=three,
        modalities=THREE,
        points=(
            point("", "sum", flat(side("audio", 8), side("video", 8)), level="middle"),
            point("", "sum", flat(side("audio+video", 8), side("text", 8))),
        ),
        rules=({"id": "sums", "match": {"kind": "sum"}, "pairs": "all"},),
        normalize="audio",
    ),
    ZooCase(
        name="learned_weights_stacked",
        build=LearnedWeightsStacked,
        inputs=three,
        modalities=THREE,
        points=(
            point(
                "",
                "concat",
                flat(side("audio", 8), side("video", 8)),
                flat(side("audio", 8), side("text", 8)),
                flat(side("video", 8), side("text", 8)),
            ),
        ),
        rules=({"id": "all", **ALL_PAIRS},),
        normalize="audio",
    ),
    ZooCase(
        name="attention_over_modalities",
        build=AttentionOverModalities,
        inputs=lambda batch: (torch.randn(batch, 5), torch.randn(batch, 6)),
        modalities=AUDIO_AND_VIDEO,
        points=(point("", "concat", flat(side("audio", 8), side("video", 8))),),
        normalize="audio",
    ),
    ZooCase(
        name="sparse_experts",
        build=LimoeLike,
        inputs=image_and_text,
        modalities=IMAGE_AND_TEXT,
        points=(point("", "concat", pooled(side("image", 8), side("text", 8))),),
        normalize="image",
    ),
    ZooCase(
        name="text_routed_experts",
        build=TextRouted,
        inputs=image_and_text,
        modalities=IMAGE_AND_TEXT,
        points=(point("router", "matmul", flat(side("image", 8), side("text", 6))),),
        normalize="image",
    ),
    configured("concat", "concat"),
    configured("sum", "concat"),  # a stack, summed over
    configured("average", "sum"),
    configured("min", "sum"),
)
