"""One stream decides how much of another passes: gates, mixtures, and modulation at several levels."""

from __future__ import annotations

import torch
from torch import nn

from .._case import ZooCase, flat, point, side, tokens
from ._parts import ImageEncoder, MapEncoder, VectorEncoder


class GatedMultimodalUnit(nn.Module):
    """`z * tanh(image) + (1 - z) * tanh(text)`, with z from both (Arevalo et al., 2017)."""

    def __init__(self, image_features: int, text_features: int, out_features: int) -> None:
        super().__init__()
        self.image = nn.Linear(image_features, out_features)
        self.text = nn.Linear(text_features, out_features)
        self.gate = nn.Linear(image_features + text_features, out_features)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        z = torch.sigmoid(self.gate(torch.cat([image, text], dim=1)))
        return z * torch.tanh(self.image(image)) + (1 - z) * torch.tanh(self.text(text))


class GMUClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 8)
        self.text_encoder = nn.EmbeddingBag(40, 6)
        self.unit = GatedMultimodalUnit(8, 6, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.head(self.unit(self.image_encoder(image), self.text_encoder(text)))


class MixtureOfExperts(nn.Module):
    """One expert per modality; a gating network that sees both weighs them, one weight per expert."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_encoder = VectorEncoder(8, 6)
        self.video_encoder = VectorEncoder(9, 7)
        self.audio_expert = nn.Linear(6, 10)
        self.video_expert = nn.Linear(7, 10)
        self.gate = nn.Linear(13, 2)
        self.head = nn.Linear(10, 4)

    def forward(self, audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        audio, video = self.audio_encoder(audio), self.video_encoder(video)
        weights = torch.softmax(self.gate(torch.cat([audio, video], dim=1)), dim=1)
        mixed = weights[:, 0:1] * self.audio_expert(audio) + weights[:, 1:2] * self.video_expert(video)
        return self.head(torch.relu(mixed))


class ProductOfExperts(nn.Module):
    """Gaussian experts joined by their precisions, as in multimodal variational autoencoders (Wu and Goodman, 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_encoder = VectorEncoder(8, 12)
        self.video_encoder = VectorEncoder(9, 12)
        self.decoder = nn.Linear(6, 4)

    def forward(self, audio: torch.Tensor, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        audio_mean, audio_log_variance = self.audio_encoder(audio).chunk(2, dim=1)
        video_mean, video_log_variance = self.video_encoder(video).chunk(2, dim=1)
        audio_precision, video_precision = torch.exp(-audio_log_variance), torch.exp(-video_log_variance)
        precision = audio_precision + video_precision
        mean = (audio_mean * audio_precision + video_mean * video_precision) / precision
        return self.decoder(mean), precision


class ChannelGate(nn.Module):
    """Squeeze-and-excitation across modalities: the context's pooled channels gate the map's."""

    def __init__(self, channels: int, context_channels: int) -> None:
        super().__init__()
        self.excite = nn.Linear(context_channels, channels)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.excite(context.mean(dim=(2, 3))))
        return x * gate.unsqueeze(-1).unsqueeze(-1)


class CrossGating(nn.Module):
    """Each map is gated by the other, both gates taken from the maps as they were; then they are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb_encoder = MapEncoder(3, 6)
        self.depth_encoder = MapEncoder(1, 4)
        self.gate_rgb = ChannelGate(6, 4)
        self.gate_depth = ChannelGate(4, 6)
        self.head = nn.Conv2d(10, 5, 1)

    def forward(self, rgb: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        rgb, depth = self.rgb_encoder(rgb), self.depth_encoder(depth)
        rgb, depth = self.gate_rgb(rgb, depth), self.gate_depth(depth, rgb)
        return self.head(torch.cat([rgb, depth], dim=1)).mean(dim=(2, 3))


class ModulatedBlock(nn.Module):
    """A residual block whose normalised map is scaled and shifted by given parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.conv(x))
        out = (1 + gamma)[:, :, None, None] * out + beta[:, :, None, None]
        return x + torch.relu(out)


class FiLMResNet(nn.Module):
    """A question modulates a CNN at every block; one generator makes all the parameters (Perez et al., 2018)."""

    def __init__(self, channels: int = 6, blocks: int = 2) -> None:
        super().__init__()
        self.stem = MapEncoder(3, channels)
        self.embedding = nn.Embedding(40, 5)
        self.question = nn.GRU(5, 8, batch_first=True)
        self.generator = nn.Linear(8, blocks * 2 * channels)
        self.blocks = nn.ModuleList([ModulatedBlock(channels) for _ in range(blocks)])
        self.head = nn.Linear(channels, 5)

    def forward(self, image: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        _, state = self.question(self.embedding(question))
        parameters = self.generator(state[-1]).view(x.size(0), len(self.blocks), 2, x.size(1))
        for index, block in enumerate(self.blocks):
            gamma, beta = parameters[:, index].unbind(dim=1)
            x = block(x, gamma, beta)
        return self.head(x.mean(dim=(2, 3)))


AUDIO_AND_VIDEO = {"audio": ["audio"], "video": ["video"]}


def audio_and_video(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 8), torch.randn(batch, 9)


CASES = (
    ZooCase(
        name="gated_multimodal_unit",
        build=GMUClassifier,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), tokens(batch, 5, vocabulary=40)),
        modalities={"image": ["image"], "text": ["text"]},
        # The gate holds both, but leaves what it scales its home: what is summed is still image and text.
        points=(
            point("unit", "concat", flat(side("image", 8), side("text", 6)), level="middle"),
            point("unit", "sum", flat(side("image", 10), side("text", 10))),
        ),
        normalize="image",
    ),
    ZooCase(
        name="mixture_of_experts",
        build=MixtureOfExperts,
        inputs=audio_and_video,
        modalities=AUDIO_AND_VIDEO,
        # One weight per expert is a broadcast gate: the experts keep their homes and meet in the sum.
        points=(
            point("", "concat", flat(side("audio", 6), side("video", 7)), level="middle"),
            point("", "sum", flat(side("audio", 10), side("video", 10))),
        ),
        normalize="audio",
    ),
    ZooCase(
        name="product_of_experts",
        build=ProductOfExperts,
        inputs=audio_and_video,
        modalities=AUDIO_AND_VIDEO,
        # The weighted means and the precisions are summed; dividing one sum by the other is no new meeting.
        points=(
            point("", "sum", flat(side("audio", 6), side("video", 6))),
            point("", "sum", flat(side("audio", 6), side("video", 6))),
        ),
        normalize="audio",
    ),
    ZooCase(
        name="cross_gating",
        build=CrossGating,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 1, 8, 8)),
        modalities={"rgb": ["rgb"], "depth": ["depth"]},
        points=(
            point("gate_rgb", "product", flat(side("rgb", 6, 4, 4), side("depth", 6)), level="middle"),
            point("gate_depth", "product", flat(side("depth", 4, 4, 4), side("rgb", 4)), level="middle"),
            point("", "concat", flat(side("rgb", 6, 4, 4), side("depth", 4, 4, 4))),
        ),
        # What a gate modulates is f, so the two gates have opposite directions.
        rules=(
            {"id": "rgb", "match": {"owner": "gate_rgb"}, "normalize": "rgb"},
            {"id": "depth", "match": {"owner": "gate_depth"}, "normalize": "depth"},
            {"id": "join", "match": {"kind": "concat"}, "normalize": "rgb"},
        ),
        normalize="rgb",
    ),
    ZooCase(
        name="film_levels",
        build=FiLMResNet,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), tokens(batch, 6, vocabulary=40)),
        modalities={"image": ["image"], "question": ["question"]},
        points=(
            point("blocks.0", "product", flat(side("image", 6, 4, 4), side("question", 6)), calls=2, level="middle"),
            point("blocks.1", "product", flat(side("image", 6, 4, 4), side("question", 6)), calls=2, level="late"),
        ),
        normalize="image",
    ),
)
