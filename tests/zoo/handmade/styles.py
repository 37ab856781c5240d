"""Ordinary fusions in unusual handwriting: no modules, time first, complex numbers, einsum, one reader for all."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, flat, point, pooled, side, tokens
from ._parts import ImageEncoder, VectorEncoder


def conv_block(x: torch.Tensor, weights: nn.ParameterDict, name: str) -> torch.Tensor:
    x = F.conv2d(x, weights[f"{name}_kernel"], weights[f"{name}_bias"], padding=1)
    return F.max_pool2d(F.relu(x), 2)


class WithoutModules(nn.Module):
    """All weights in one dict, all layers functions."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"rgb": (6, 3, 3, 3), "depth": (4, 1, 3, 3)}
        self.weights = nn.ParameterDict()
        for name, size in sizes.items():
            self.weights[f"{name}_kernel"] = nn.Parameter(torch.randn(size) * 0.2)
            self.weights[f"{name}_bias"] = nn.Parameter(torch.zeros(size[0]))
        self.weights["head"] = nn.Parameter(torch.randn(5, 10) * 0.3)

    def forward(self, rgb: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        maps = [conv_block(x, self.weights, name) for name, x in (("rgb", rgb), ("depth", depth))]
        return F.linear(torch.cat(maps, 1).mean((-2, -1)), self.weights["head"])


class TimeFirst(nn.Module):
    """Two recurrent encoders whose states are summed at every step, all of it `[L, B, C]`."""

    def __init__(self) -> None:
        super().__init__()
        self.speech, self.lips = nn.GRU(5, 4, bidirectional=True), nn.LSTM(6, 8)
        self.decoder = nn.GRU(8, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, speech: torch.Tensor, lips: torch.Tensor) -> torch.Tensor:
        states, _ = self.decoder(self.speech(speech)[0] + self.lips(lips)[0])
        return self.head(states[-1])


class ComplexFusion(nn.Module):
    """One modality is the real part, the other the imaginary one; they mix in the spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.amplitude, self.phase = VectorEncoder(7, 8), VectorEncoder(9, 8)
        self.filter = nn.Parameter(torch.randn(8, 2) * 0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, amplitude: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
        both = torch.view_as_complex(torch.stack([self.amplitude(amplitude), self.phase(phase)], dim=-1))
        spectrum = torch.fft.fft(both, dim=-1) * torch.view_as_complex(self.filter)
        return self.head(torch.fft.ifft(spectrum, dim=-1).abs())


class EinsumMixer(nn.Module):
    """An MLP mixer over the tokens of both, every product an einsum with a parameter."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.embed_a, self.embed_b = nn.Parameter(torch.randn(5, features)), nn.Parameter(torch.randn(6, features))
        self.over_tokens = nn.Parameter(torch.randn(7, 7) * 0.3)
        self.over_channels = nn.Parameter(torch.randn(features, features) * 0.3)
        self.head = nn.Parameter(torch.randn(features, 4) * 0.3)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a = torch.einsum("bnc,cd->bnd", a, self.embed_a)
        b = torch.einsum("bnc,cd->bnd", b, self.embed_b)
        x = torch.cat([a, b], dim=-2)
        x = x + F.gelu(torch.einsum("bnc,mn->bmc", x, self.over_tokens))
        x = x + F.gelu(torch.einsum("bnc,cd->bnd", x, self.over_channels))
        return torch.einsum("bnc,cd->bd", x, self.head)


class Reader(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(features, features) for _ in range(3))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(self.q(x) @ self.k(context).transpose(1, 2) / x.shape[-1] ** 0.5, dim=-1)
        return x + weights @ self.v(context)


class SharedReader(nn.Module):
    """HighMMT-like (Liang et al., 2022): one cross-attention for every ordered pair of three modalities."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.embed = nn.ModuleDict({"text": nn.Linear(5, features), "audio": nn.Linear(6, features)})
        self.embed["video"] = nn.Linear(7, features)
        self.reader = Reader(features)
        self.head = nn.Linear(6 * features, 4)

    def forward(self, text: torch.Tensor, audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        streams = {"text": text, "audio": audio, "video": video}
        streams = {name: self.embed[name](x) for name, x in streams.items()}
        read = [self.reader(streams[a], streams[b]).mean(dim=1) for a, b in itertools.permutations(streams, 2)]
        return self.head(torch.cat(read, dim=1))


class ShowAndTell(nn.Module):
    """The image is the first state of the network that reads the words (Vinyals et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(3, 8)
        self.embedding = nn.Embedding(40, 6)
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 40)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        state = self.image_encoder(image).unsqueeze(0)
        hidden, _ = self.lstm(self.embedding(text), (state, torch.zeros_like(state)))
        return self.head(hidden)


ORDER = ("text", "audio", "video")
READS = tuple(itertools.permutations(ORDER, 2))

CASES = (
    ZooCase(
        name="without_modules",
        build=WithoutModules,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 1, 8, 8)),
        modalities={"rgb": ["rgb"], "depth": ["depth"]},
        points=(point("", "concat", flat(side("rgb", 6, 4, 4), side("depth", 4, 4, 4))),),
        normalize="rgb",
    ),
    ZooCase(
        name="time_first",
        build=TimeFirst,
        inputs=lambda batch: (torch.randn(5, batch, 5), torch.randn(5, batch, 6)),
        modalities={"speech": ["speech"], "lips": ["lips"]},
        points=(point("", "sum", pooled(side("speech", 8), side("lips", 8))),),
        normalize="speech",
    ),
    ZooCase(
        name="complex_fusion",
        build=ComplexFusion,
        inputs=lambda batch: (torch.randn(batch, 7), torch.randn(batch, 9)),
        modalities={"amplitude": ["amplitude"], "phase": ["phase"]},
        points=(point("", "concat", flat(side("amplitude", 8), side("phase", 8))),),
        normalize="amplitude",
    ),
    ZooCase(
        name="einsum_mixer",
        build=EinsumMixer,
        inputs=lambda batch: (torch.randn(batch, 4, 5), torch.randn(batch, 3, 6)),
        modalities={"a": ["a"], "b": ["b"]},
        points=(point("", "concat", pooled(side("a", 8), side("b", 8))),),
        normalize="a",
    ),
    ZooCase(
        name="shared_reader",
        build=SharedReader,
        inputs=lambda batch: (torch.randn(batch, 4, 5), torch.randn(batch, 3, 6), torch.randn(batch, 5, 7)),
        modalities={name: [name] for name in ORDER},
        # One owner in six roles; what each role makes stays the reader's, so the six are joined by three homes.
        points=(
            point("reader", "attention", *(pooled(side(f, 8), side(g, 8)) for f, g in READS), calls=12, level="middle"),
            point(
                "",
                "concat",
                *(flat(side(f[0], 8), side(g[0], 8)) for f, g in itertools.combinations(READS, 2) if f[0] != g[0]),
                selected=False,
            ),
        ),
        rules=({"id": "reads", "match": {"kind": "attention"}, "pairs": "all"},),
        normalize="text",
    ),
    ZooCase(
        name="show_and_tell",
        build=ShowAndTell,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), tokens(batch, 5, vocabulary=40)),
        modalities={"image": ["image"], "text": ["text"]},
        # A recurrent network of torch's joins the words and its first state: no operand of it is a place for RegBN by
        # itself, which goes between the encoders.
        points=(point("", "module", meets=("image", "text"), selected=False, sites_known=False),),
        pair_sites=(pooled(side("text", 6), side("image", 8)),),
        rules=({"id": "encoders", "pair": {"f": "module:embedding", "g": "module:image_encoder"}},),
        normalize="text",
    ),
)
