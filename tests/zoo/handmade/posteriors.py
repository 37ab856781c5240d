"""Distributions and subspaces: variational autoencoders of several modalities, shared and private parts, decisions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, flat, point, pooled, side, tokens
from ._parts import ImageEncoder, VectorEncoder


class ProductOfGaussians(nn.Module):
    """Posterior of a product of experts along the leading axis (Wu and Goodman, 2018, as published)."""

    def forward(self, mean: torch.Tensor, log_variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        precision = 1.0 / (torch.exp(log_variance) + 1e-8)
        joint_mean = torch.sum(mean * precision, dim=0) / torch.sum(precision, dim=0)
        return joint_mean, torch.log(1.0 / torch.sum(precision, dim=0) + 1e-8)


class MVAE(nn.Module):
    """A prior expert, then one modality after another in front of it; both are decoded from one sample."""

    def __init__(self, latents: int = 6) -> None:
        super().__init__()
        self.latents = latents
        self.image_encoder, self.text_encoder = VectorEncoder(16, 2 * latents), VectorEncoder(9, 2 * latents)
        self.experts = ProductOfGaussians()
        self.image_decoder, self.text_decoder = VectorEncoder(latents, 16), VectorEncoder(latents, 9)

    def infer(self, image: torch.Tensor | None, text: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        batch = image.size(0) if image is not None else text.size(0)
        mean = torch.zeros(1, batch, self.latents)
        log_variance = torch.zeros(1, batch, self.latents)
        if image is not None:
            image_mean, image_log_variance = self.image_encoder(image).chunk(2, dim=-1)
            mean = torch.cat((mean, image_mean.unsqueeze(0)), dim=0)
            log_variance = torch.cat((log_variance, image_log_variance.unsqueeze(0)), dim=0)
        if text is not None:
            text_mean, text_log_variance = self.text_encoder(text).chunk(2, dim=-1)
            mean = torch.cat((mean, text_mean.unsqueeze(0)), dim=0)
            log_variance = torch.cat((log_variance, text_log_variance.unsqueeze(0)), dim=0)
        return self.experts(mean, log_variance)

    def reparametrise(self, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return mean
        std = log_variance.mul(0.5).exp()
        return torch.randn_like(std).mul(std).add_(mean)

    def forward(self, image: torch.Tensor | None = None, text: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        mean, log_variance = self.infer(image, text)
        z = self.reparametrise(mean, log_variance)
        return self.image_decoder(z), self.text_decoder(z), mean, log_variance


class MixtureOfPosteriors(nn.Module):
    """MMVAE (Shi et al., 2019): each modality's sample is decoded into both; only the evidence is put together."""

    def __init__(self, latents: int = 5) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"image": VectorEncoder(16, 2 * latents), "sound": VectorEncoder(9, 2 * latents)})
        self.decoders = nn.ModuleDict({"image": VectorEncoder(latents, 16), "sound": VectorEncoder(latents, 9)})

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        evidence = []
        for name, x in inputs.items():
            mean, log_scale = self.encoders[name](x).chunk(2, dim=-1)
            posterior = torch.distributions.Normal(mean, F.softplus(log_scale) + 1e-3)
            z = posterior.rsample()
            likelihood = sum(-(decoder(z) - z.mean()).square().sum(-1) for decoder in self.decoders.values())
            evidence.append(likelihood - posterior.log_prob(z).sum(-1))
        return torch.logsumexp(torch.stack(evidence, dim=-1), dim=-1)


class SharedAndPrivate(nn.Module):
    """MISA (Hazarika et al., 2020): private and shared views of three modalities, in one transformer over the six."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        sizes = {"text": 7, "video": 5, "audio": 6}
        self.project = nn.ModuleDict({name: nn.Linear(size, features) for name, size in sizes.items()})
        self.private = nn.ModuleDict({name: nn.Linear(features, features) for name in sizes})
        self.shared = nn.Sequential(nn.Linear(features, features), nn.Sigmoid())
        self.reconstruct = nn.ModuleDict({name: nn.Linear(features, features) for name in sizes})
        layer = nn.TransformerEncoderLayer(features, 2, 16, dropout=0.0)
        self.transformer = nn.TransformerEncoder(layer, 1)
        self.fusion = nn.Sequential(nn.Linear(6 * features, 12), nn.ReLU(), nn.Linear(12, 1))

    def forward(self, text: torch.Tensor, video: torch.Tensor, audio: torch.Tensor) -> dict[str, torch.Tensor]:
        views = {name: self.project[name](x) for name, x in (("text", text), ("video", video), ("audio", audio))}
        private = {name: torch.sigmoid(self.private[name](x)) for name, x in views.items()}
        shared = {name: self.shared(x) for name, x in views.items()}
        rebuilt = {name: self.reconstruct[name](private[name] + shared[name]) for name in views}
        h = self.transformer(torch.stack((*private.values(), *shared.values()), dim=0))
        out = self.fusion(torch.cat([h[i] for i in range(6)], dim=1))
        return {"out": out, **{f"rebuilt_{name}": x for name, x in rebuilt.items()}}


class LogOpinionPool(nn.Module):
    """Each modality votes by its log-probabilities; a normalised product of experts decides."""

    def __init__(self) -> None:
        super().__init__()
        self.face, self.voice = ImageEncoder(3, 6), VectorEncoder(9, 6)
        self.face_head, self.voice_head = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, face: torch.Tensor, voice: torch.Tensor) -> torch.Tensor:
        votes = [
            F.log_softmax(head(encoder(x)), dim=-1)
            for head, encoder, x in (
                (self.face_head, self.face, face),
                (self.voice_head, self.voice, voice),
            )
        ]
        return torch.log_softmax(torch.stack(votes).sum(dim=0), dim=-1)


class MultipleExits(nn.Module):
    """An exit for each modality and one for both; their decisions are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder, self.table_encoder = ImageEncoder(3, 8), VectorEncoder(9, 6)
        self.image_exit, self.table_exit, self.joint_exit = nn.Linear(8, 4), nn.Linear(6, 4), nn.Linear(14, 4)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> dict[str, torch.Tensor]:
        image, table = self.image_encoder(image), self.table_encoder(table)
        out = {"image": self.image_exit(image), "table": self.table_exit(table)}
        out["joint"] = self.joint_exit(torch.cat([image, table], dim=1))
        out["mean"] = (out["image"] + out["table"] + out["joint"]) / 3
        return out


class CrossStitch(nn.Module):
    """Two networks, each of whose layers reads a learned mixture of both (Misra et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.depth = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(1, 6, 3, 2, 1)
        self.stitches = nn.ParameterList([torch.tensor([[0.9, 0.1], [0.2, 0.8]]) for _ in range(2)])
        self.rgb2, self.depth2 = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.normals, self.edges = nn.Conv2d(6, 3, 1), nn.Conv2d(6, 1, 1)

    def forward(self, rgb: torch.Tensor, depth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = self.rgb(rgb).relu(), self.depth(depth).relu()
        w = self.stitches[0]
        a, b = w[0, 0] * a + w[0, 1] * b, w[1, 0] * a + w[1, 1] * b
        a, b = self.rgb2(a).relu(), self.depth2(b).relu()
        w = self.stitches[1]
        a, b = w[0, 0] * a + w[0, 1] * b, w[1, 0] * a + w[1, 1] * b
        return self.normals(a), self.edges(b)


class MultiplicativeTwoStream(nn.Module):
    """Motion gates the residual of appearance at every block (Feichtenhofer et al., 2017); scores are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.appearance, self.motion = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
        self.appearance_blocks = nn.ModuleList([nn.Conv2d(6, 6, 3, 1, 1) for _ in range(2)])
        self.motion_blocks = nn.ModuleList([nn.Conv2d(6, 6, 3, 1, 1) for _ in range(2)])
        self.appearance_head, self.motion_head = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, frame: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        a, m = self.appearance(frame).relu(), self.motion(flow).relu()
        for block_a, block_m in zip(self.appearance_blocks, self.motion_blocks, strict=True):
            a = (a + block_a(a * m)).relu()
            m = (m + block_m(m)).relu()
        return (self.appearance_head(a.mean((2, 3))) + self.motion_head(m.mean((2, 3)))) / 2


class RankFusion(nn.Module):
    """AudioCLIP-like: three towers, three matrices of similarities (Guzhov et al., 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text, self.audio = ImageEncoder(3, 8), nn.EmbeddingBag(40, 8), VectorEncoder(9, 8)
        self.scales = nn.ParameterDict({name: torch.zeros(()) for name in ("ai", "at", "it")})

    def forward(self, audio: torch.Tensor, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        audio, image, text = self.audio(audio), self.image(image), self.text(text)
        audio, image, text = (x / x.norm(dim=-1, keepdim=True) for x in (audio, image, text))
        return {
            "ai": self.scales["ai"].exp() * audio @ image.T,
            "at": self.scales["at"].exp() * audio @ text.T,
            "it": self.scales["it"].exp() * image @ text.T,
        }


IMAGE_AND_TEXT = {"image": ["image"], "text": ["text"]}
IMAGE_AND_TABLE = {"image": ["image"], "table": ["table"]}
RGB_AND_DEPTH = {"rgb": ["rgb"], "depth": ["depth"]}
MISA_ORDER = ("text", "video", "audio") * 2

CASES = (
    ZooCase(
        name="mvae",
        build=MVAE,
        inputs=lambda batch: (torch.randn(batch, 16), torch.randn(batch, 9)),
        modalities=IMAGE_AND_TEXT,
        # The text's mean joins the prior's and the image's along an axis of experts, and so does its variance; what is
        # made of the two afterwards multiplies streams of one home.
        points=(
            point("", "concat", pooled(side("image", 6), side("text", 6)), level=None),
            point("", "concat", pooled(side("image", 6), side("text", 6)), level=None),
        ),
        normalize="image",
    ),
    ZooCase(
        name="mixture_of_posteriors",
        build=MixtureOfPosteriors,
        inputs=lambda batch: ({"image": torch.randn(batch, 16), "sound": torch.randn(batch, 9)},),
        modalities={"image": ["inputs.image"], "sound": ["inputs.sound"]},
        # One number per sample and modality: no place for RegBN. What one encoder makes is used up before the other
        # starts, so it goes to the inputs.
        points=(point("", "concat", meets=("image", "sound"), selected=False, sites_known=False),),
        pair_sites=(flat(side("image", 16), side("sound", 9)),),
        rules=({"id": "early", "pair": {"f": "input:inputs.image", "g": "input:inputs.sound"}},),
        normalize="image",
    ),
    ZooCase(
        name="misa",
        build=SharedAndPrivate,
        inputs=lambda batch: (torch.randn(batch, 7), torch.randn(batch, 5), torch.randn(batch, 6)),
        modalities={"text": ["text"], "video": ["video"], "audio": ["audio"]},
        points=(
            point(
                "",
                "concat",
                *(
                    flat(side(f, 8), side(g, 8))
                    for i, f in enumerate(MISA_ORDER)
                    for g in MISA_ORDER[i + 1 :]
                    if f != g
                ),
            ),
        ),
        rules=({"id": "all", "match": {"kind": "concat"}, "pairs": "all"},),
        normalize="text",
    ),
    ZooCase(
        name="log_opinion_pool",
        build=LogOpinionPool,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 9)),
        modalities={"face": ["face"], "voice": ["voice"]},
        points=(point("", "concat", flat(side("face", 4), side("voice", 4))),),
        normalize="face",
    ),
    ZooCase(
        name="multiple_exits",
        build=MultipleExits,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 9)),
        modalities=IMAGE_AND_TABLE,
        points=(
            point("", "concat", flat(side("image", 8), side("table", 6)), level=None),
            point("", "sum", flat(side("image", 4), side("table", 4)), level=None),
            point("", "sum", meets=("image+table",), level="remeeting", selected=False, sites_known=False),
        ),
        rules=(
            {"id": "joint", "match": {"kind": "concat"}, "normalize": "image"},
            {"id": "mean", "match": {"kind": "sum", "between": ["image", "table"]}, "normalize": "image"},
        ),
        normalize="image",
    ),
    ZooCase(
        name="cross_stitch",
        build=CrossStitch,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 1, 8, 8)),
        modalities=RGB_AND_DEPTH,
        # After the first stitch both streams hold both: the second is a re-meeting, twice.
        points=(
            *(point("", "sum", flat(side("rgb", 6, 4, 4), side("depth", 6, 4, 4)), level=None) for _ in range(2)),
            *(
                point("", "sum", meets=("rgb+depth",), level="remeeting", selected=False, sites_known=False)
                for _ in range(2)
            ),
        ),
        rules=({"id": "first", "match": {"kind": "sum"}, "normalize": "rgb", "against": "depth"},),
        normalize="rgb",
    ),
    ZooCase(
        name="multiplicative_two_stream",
        build=MultiplicativeTwoStream,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 4, 8, 8)),
        modalities={"frame": ["frame"], "flow": ["flow"]},
        # The residual gives appearance its home back after every block. The loop's two products stand in one line, of
        # the same streams at two depths.
        points=(
            point("", "product", flat(side("frame", 6, 4, 4), side("flow", 6, 4, 4)), level="middle"),
            point("", "product", flat(side("frame", 6, 4, 4), side("flow", 6, 4, 4)), level="middle"),
            point("", "sum", flat(side("frame", 4), side("flow", 4))),
        ),
        normalize="frame",
    ),
    ZooCase(
        name="three_similarities",
        build=RankFusion,
        inputs=lambda batch: (torch.randn(batch, 9), torch.randn(batch, 3, 8, 8), tokens(batch, 5, vocabulary=40)),
        modalities={"audio": ["audio"], "image": ["image"], "text": ["text"]},
        points=tuple(
            point("", "similarity", flat(side(f, 8), side(g, 8)))
            for f, g in (("audio", "image"), ("audio", "text"), ("image", "text"))
        ),
        rules=({"id": "towers", "match": {"kind": "similarity"}, "pairs": "all"},),
        normalize="audio",
    ),
)
