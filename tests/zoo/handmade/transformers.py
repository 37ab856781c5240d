"""Token streams that exchange information: directional, through bottlenecks, through latents, in torch's decoder."""

from __future__ import annotations

import torch
from torch import nn

from .._case import ZooCase, flat, point, pooled, side, tokens
from ._parts import PatchEncoder, TokenEncoder

STREAMS = ("text", "audio", "video")


class DirectionalLayer(nn.Module):
    """A pre-norm layer in which the target stream reads the source stream, `[L, B, C]`."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.attention = nn.MultiheadAttention(features, 2, dropout=0.1)
        self.norm_mlp = nn.LayerNorm(features)
        self.mlp = nn.Sequential(nn.Linear(features, 12), nn.ReLU(), nn.Linear(12, features))

    def forward(self, target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        memory = self.norm(source)
        attended, _ = self.attention(query=self.norm(target), key=memory, value=memory)
        target = target + attended
        return target + self.mlp(self.norm_mlp(target))


class DirectionalTransformer(nn.Module):
    """MulT (Tsai et al., 2019): every stream reads both others, then the three last states are joined."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        widths = {"text": 9, "audio": 5, "video": 7}
        self.project = nn.ModuleDict({name: nn.Conv1d(widths[name], features, 1, bias=False) for name in STREAMS})
        self.cross = nn.ModuleDict(
            {
                f"{target}_with_{source}": DirectionalLayer(features)
                for target in STREAMS
                for source in STREAMS
                if source != target
            }
        )
        self.memory = nn.ModuleDict(
            {name: nn.TransformerEncoderLayer(2 * features, 2, 16, dropout=0.1) for name in STREAMS}
        )
        self.head = nn.Linear(6 * features, 4)

    def forward(self, text: torch.Tensor, audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        raw = {"text": text, "audio": audio, "video": video}
        streams = {name: self.project[name](raw[name].transpose(1, 2)).permute(2, 0, 1) for name in STREAMS}
        last = []
        for target in STREAMS:
            read = [
                self.cross[f"{target}_with_{source}"](streams[target], streams[source])
                for source in STREAMS
                if source != target
            ]
            last.append(self.memory[target](torch.cat(read, dim=2))[-1])
        return self.head(torch.cat(last, dim=1))


class BottleneckLayer(nn.Module):
    """Each stream attends over itself and a few shared tokens; what the streams wrote there is averaged."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.audio_block = nn.TransformerEncoderLayer(features, 2, 16, dropout=0.1, batch_first=True)
        self.video_block = nn.TransformerEncoderLayer(features, 2, 16, dropout=0.1, batch_first=True)

    def forward(
        self, audio: torch.Tensor, video: torch.Tensor, shared: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        count = shared.shape[1]
        audio = self.audio_block(torch.cat([audio, shared], dim=1))
        video = self.video_block(torch.cat([video, shared], dim=1))
        shared = (audio[:, -count:] + video[:, -count:]) / 2
        return audio[:, :-count], video[:, :-count], shared


class BottleneckTransformer(nn.Module):
    """Attention bottlenecks (Nagrani et al., 2021), classified from the shared tokens."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.audio_proj = nn.Linear(5, features)
        self.video_proj = nn.Linear(7, features)
        self.shared = nn.Parameter(torch.randn(1, 2, features) * 0.1)
        self.layers = nn.ModuleList([BottleneckLayer(features), BottleneckLayer(features)])
        self.head = nn.Linear(features, 4)

    def forward(self, audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        audio, video = self.audio_proj(audio), self.video_proj(video)
        shared = self.shared.expand(audio.size(0), -1, -1)
        for layer in self.layers:
            audio, video, shared = layer(audio, video, shared)
        return self.head(shared.mean(dim=1))


class LatentRead(nn.Module):
    def __init__(self, features: int, context_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.attention = nn.MultiheadAttention(
            features, 2, kdim=context_features, vdim=context_features, batch_first=True
        )

    def forward(self, latents: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return latents + self.attention(self.norm(latents), context, context)[0]


class JointPerceiver(nn.Module):
    """Learned latents read one sequence that holds the tokens of both modalities."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = PatchEncoder(3, 10)
        self.audio_proj = nn.Linear(5, 10)
        self.latents = nn.Parameter(torch.randn(1, 3, 8) * 0.1)
        self.read = LatentRead(8, 10)
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        context = torch.cat([self.image_encoder(image), self.audio_proj(audio)], dim=1)
        latents = self.read(self.latents.expand(image.shape[0], -1, -1), context)
        return self.head(latents.mean(dim=1))


class SequentialPerceiver(nn.Module):
    """Learned latents read the image first and then the audio."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = PatchEncoder(3, 10)
        self.audio_proj = nn.Linear(5, 6)
        self.latents = nn.Parameter(torch.randn(1, 3, 8) * 0.1)
        self.read_image = LatentRead(8, 10)
        self.read_audio = LatentRead(8, 6)
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        latents = self.latents.expand(image.shape[0], -1, -1)
        latents = self.read_image(latents, self.image_encoder(image))
        latents = self.read_audio(latents, self.audio_proj(audio))
        return self.head(latents.mean(dim=1))


class CaptionDecoder(nn.Module):
    """`nn.TransformerDecoder` over image patches, with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = PatchEncoder(3, 16)
        self.text_encoder = TokenEncoder(40, 16)
        layer = nn.TransformerDecoderLayer(16, 2, 24, dropout=0.1, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.head = nn.Linear(16, 40)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        decoded = self.decoder(self.text_encoder(text), self.image_encoder(image), tgt_mask=mask)
        return self.head(decoded)


class MaskedScatter(nn.Module):
    """Image tokens are written over placeholder tokens of the text, as LLaVA-like models do."""

    PLACEHOLDER = 1

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 12)
        self.image_encoder = PatchEncoder(3, 12)
        self.encoder = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.1, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        embeddings = self.embedding(text)
        placeholders = (text == self.PLACEHOLDER).unsqueeze(-1).expand_as(embeddings)
        embeddings = embeddings.masked_scatter(placeholders, self.image_encoder(image))
        return self.head(self.encoder(embeddings)[:, -1])


def image_and_placeholders(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    text = tokens(batch, 9, vocabulary=40)
    text[:, 1:5] = MaskedScatter.PLACEHOLDER  # 8 x 8 pixels in 4 x 4 patches
    return torch.randn(batch, 3, 8, 8), text


def directional_points():
    for target in STREAMS:
        for source in STREAMS:
            if source != target:
                site = pooled(side(target, 8), side(source, 8))
                yield point(f"cross.{target}_with_{source}", "attention", site, level="middle")
    pairs = [("text", "audio"), ("text", "video"), ("audio", "video")]
    yield point("", "concat", *(flat(side(f, 16), side(g, 16)) for f, g in pairs))


CASES = (
    ZooCase(
        name="directional_transformer",
        build=DirectionalTransformer,
        inputs=lambda batch: (torch.randn(batch, 6, 9), torch.randn(batch, 8, 5), torch.randn(batch, 4, 7)),
        modalities={name: [name] for name in STREAMS},
        # Joining what a stream read from two others is no meeting: both keep the reader's home.
        points=tuple(directional_points()),
        rules=(
            {"id": "ta", "match": {"kind": "attention", "between": ["text", "audio"]}, "normalize": "text"},
            {"id": "tv", "match": {"kind": "attention", "between": ["text", "video"]}, "normalize": "text"},
            {"id": "av", "match": {"kind": "attention", "between": ["audio", "video"]}, "normalize": "audio"},
            {"id": "join", "match": {"kind": "concat"}, "pairs": "all"},
        ),
        normalize="text",
    ),
    ZooCase(
        name="bottleneck_tokens",
        build=BottleneckTransformer,
        inputs=lambda batch: (torch.randn(batch, 6, 5), torch.randn(batch, 4, 7)),
        modalities={"audio": ["audio"], "video": ["video"]},
        # A stream joined with what it has itself written to (among others) stays that stream.
        points=(
            point("layers.0", "sum", pooled(side("audio", 8), side("video", 8)), level="middle"),
            point("layers.1", "sum", pooled(side("audio", 8), side("video", 8)), level="late"),
        ),
        normalize="audio",
    ),
    ZooCase(
        name="joint_perceiver",
        build=JointPerceiver,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 6, 5)),
        modalities={"image": ["image"], "audio": ["audio"]},
        points=(point("", "concat", pooled(side("image", 10), side("audio", 10))),),
        normalize="image",
    ),
    ZooCase(
        name="sequential_perceiver",
        build=SequentialPerceiver,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 6, 5)),
        modalities={"image": ["image"], "audio": ["audio"]},
        # Latents are parameters: they take the home of what they read first.
        points=(point("read_audio", "attention", pooled(side("image", 8), side("audio", 6))),),
        normalize="image",
    ),
    ZooCase(
        name="torch_decoder",
        build=CaptionDecoder,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), tokens(batch, 5, vocabulary=40)),
        modalities={"image": ["image"], "text": ["text"]},
        # torch's transformers are leaves: the root calls one, and both streams enter it there.
        points=(point("", "attention", pooled(side("text", 16), side("image", 16))),),
        normalize="text",
        against="image",
    ),
    ZooCase(
        name="masked_scatter",
        build=MaskedScatter,
        inputs=image_and_placeholders,
        modalities={"image": ["image"], "text": ["text"]},
        points=(point("", "scatter", pooled(side("text", 12), side("image", 12))),),
        normalize="text",
    ),
)
