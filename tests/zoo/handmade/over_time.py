"""Loops over time in which two streams meet at every step, and causal texts of which one vector meets the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, flat, point, pooled, side, tokens

IMAGE_AND_IDS = {"image": ["image"], "text": ["ids"]}


class GuidedAttention(nn.Module):
    """Audio-visual events (Tian et al., 2018): in each second, the sound looks at the places of its frame."""

    def __init__(self) -> None:
        super().__init__()
        self.video_projection, self.audio_projection = nn.Linear(12, 16), nn.Linear(8, 16)
        self.score = nn.Linear(16, 1, bias=False)
        self.video_lstm = nn.LSTM(12, 8, batch_first=True, bidirectional=True)
        self.audio_lstm = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 5)

    def forward(self, audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        seconds = []
        for t in range(audio.size(1)):
            places, sound = self.video_projection(video[:, t]), self.audio_projection(audio[:, t])
            weights = F.softmax(self.score(torch.tanh(places + sound.unsqueeze(1))), dim=1)
            seconds.append((weights * video[:, t]).sum(dim=1))
        seen, heard = self.video_lstm(torch.stack(seconds, dim=1))[0], self.audio_lstm(audio)[0]
        return self.head(torch.cat([seen, heard], dim=-1)).mean(dim=1)


class StepwiseReader(nn.Module):
    """A sentence is read word by word; after each word its state asks the image's regions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.regions = nn.Embedding(40, 10), nn.Linear(7, 12)
        self.cell = nn.GRUCell(10, 12)
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))
        self.head = nn.Linear(12, 4)

    def forward(self, ids: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        words, regions = self.words(ids), self.regions(image)
        state, answers = words.new_zeros(len(ids), 12), []
        for t in range(ids.shape[1]):
            state = self.cell(words[:, t], state)
            scores = torch.bmm(self.key(regions), self.query(state).unsqueeze(2))
            answers.append(torch.bmm(scores.softmax(dim=1).transpose(1, 2), self.value(regions)).squeeze(1))
        return self.head(torch.stack(answers, dim=1).amax(dim=1))


class StepwiseGate(nn.Module):
    """Sensor readings, each let through as far as the operator's record of that time says."""

    def __init__(self) -> None:
        super().__init__()
        self.sensors, self.record = nn.Linear(6, 9), nn.Linear(4, 9)
        self.cell = nn.GRUCell(9, 11)
        self.head = nn.Linear(11, 3)

    def forward(self, sensors: torch.Tensor, record: torch.Tensor) -> torch.Tensor:
        state = sensors.new_zeros(len(sensors), 11)
        for reading, note in zip(sensors.unbind(1), record.unbind(1), strict=True):
            gate = torch.sigmoid(self.record(note))
            state = self.cell(self.sensors(reading) * gate, state)
        return self.head(state)


class PooledCausalText(nn.Module):
    """CLIP's text tower in short: causal, and read at its last word; each text is asked for on the image's patches."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.tower, self.last = nn.Embedding(40, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 8)
        self.patches = nn.Linear(5, 8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.tower(self.words(ids))[0]  # [B * Q, L, C]
        asked = self.last(states[:, -1]).unflatten(0, (len(image), -1))  # [B, Q, C]
        patches = self.patches(image)
        weights = (self.query(patches) @ self.key(asked).transpose(1, 2)).softmax(dim=-1)
        return self.head(patches + weights @ self.value(asked)), states


class Hashed(nn.Module):
    """Two towers of a shop: ids without end are hashed into tables, and each user has a history."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(32, 6), nn.Embedding(32, 6)
        self.history = nn.EmbeddingBag(32, 6, mode="mean")
        self.user_tower = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8))
        self.item_tower = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8))

    def forward(self, user_id: torch.Tensor, history: torch.Tensor, item_id: torch.Tensor) -> torch.Tensor:
        user = torch.cat([self.users(user_id % 32), self.history((history * 7 + 3) % 32)], dim=1)
        return (self.user_tower(user) * self.item_tower(self.items(item_id % 32))).sum(dim=1)


class ExpandedModulation(nn.Module):
    """DAFT as its authors write it: scale and shift are views expanded to the volume's shape, in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv3d(1, 6, 3, stride=2, padding=1), nn.Conv3d(6, 6, 3, padding=1)
        self.auxiliary = nn.Sequential(nn.Linear(13, 4, bias=False), nn.ReLU(), nn.Linear(4, 12, bias=False))
        self.head = nn.Linear(6, 3)

    def forward(self, image: torch.Tensor, tabular: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(image))
        both = torch.cat((F.adaptive_avg_pool3d(x, 1).flatten(1), tabular), dim=1)
        scale, shift = torch.split(self.auxiliary(both), 6, dim=1)
        scale, shift = (v.view(*x.shape[:2], 1, 1, 1).expand_as(x) for v in (torch.tanh(scale), shift))
        out = torch.relu(self.conv(x) * scale + shift)
        return self.head(F.adaptive_avg_pool3d(out + x, 1).flatten(1))


class ConditionedField(nn.Module):
    """A field of points conditioned on an image (pixelNeRF without rays), with the input again at a later layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.first, self.second, self.out = nn.Linear(15 + 8, 16), nn.Linear(16 + 15 + 8, 16), nn.Linear(16, 4)
        self.register_buffer("frequencies", 2.0 ** torch.arange(2))

    def forward(self, points: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        angles = (points[..., None] * self.frequencies).flatten(-2)
        coded = torch.cat([points, angles.sin(), angles.cos()], dim=-1)
        given = torch.cat([coded, self.encoder(image)[:, None].expand(-1, coded.shape[1], -1)], dim=-1)
        hidden = torch.relu(self.first(given))
        return self.out(torch.relu(self.second(torch.cat([hidden, given], dim=-1))))


CASES = (
    ZooCase(
        name="guided_attention",
        build=GuidedAttention,
        inputs=lambda batch: {"audio": torch.randn(batch, 4, 8), "video": torch.randn(batch, 4, 9, 12)},
        modalities={"audio": ["audio"], "video": ["video"]},
        # `places + sound` of each second is one point, however many seconds; then the two sequences side by side.
        points=(
            point("", "sum", pooled(side("video", 16), side("audio", 16)), level="middle"),
            point("", "concat", pooled(side("video", 16), side("audio", 16))),
        ),
        normalize="video",
        against="audio",
    ),
    ZooCase(
        name="stepwise_reader",
        build=StepwiseReader,
        inputs=lambda batch: {"ids": tokens(batch, 5, 40), "image": torch.randn(batch, 6, 7)},
        modalities=IMAGE_AND_IDS,
        # The state is text alone; scores and weighed values of every word are one attention.
        points=(point("", "attention", pooled(side("image", 12), side("text", 12)), calls=2),),
        normalize="image",
        against="text",
    ),
    ZooCase(
        name="stepwise_gate",
        build=StepwiseGate,
        inputs=lambda batch: {"sensors": torch.randn(batch, 5, 6), "record": torch.randn(batch, 5, 4)},
        modalities={"sensors": ["sensors"], "record": ["record"]},
        points=(point("", "product", flat(side("sensors", 9), side("record", 9))),),
        normalize="sensors",
        against="record",
    ),
    ZooCase(
        name="pooled_causal_text",
        build=PooledCausalText,
        inputs=lambda batch: {"image": torch.randn(batch, 4, 5), "ids": tokens(batch * 3, 6, 40)},
        modalities=IMAGE_AND_IDS,
        # One vector for each text has no later positions to show: the image may be normalised against them.
        points=(point("", "attention", pooled(side("image", 8), side("text", 8)), calls=2),),
        normalize="image",
        against="text",
    ),
    ZooCase(
        name="hashed_towers",
        build=Hashed,
        inputs=lambda batch: {
            "user_id": torch.randint(0, 10**6, (batch,)),
            "history": torch.randint(0, 10**6, (batch, 5)),
            "item_id": torch.randint(0, 10**6, (batch,)),
        },
        modalities={"user": ["user_id", "history"], "item": ["item_id"]},
        points=(point("", "product", flat(side("user", 8), side("item", 8))),),
        normalize="user",
    ),
    ZooCase(
        name="expanded_modulation",
        build=ExpandedModulation,
        inputs=lambda batch: {"image": torch.randn(batch, 1, 8, 8, 8), "tabular": torch.randn(batch, 7)},
        modalities={"image": ["image"], "table": ["tabular"]},
        # Scale and shift hold the image already, and the block's shortcut is what they modulate.
        points=(point("", "concat", flat(side("image", 6), side("table", 7))),),
        normalize="image",
    ),
    ZooCase(
        name="conditioned_field",
        build=ConditionedField,
        inputs=lambda batch: {"points": torch.randn(batch, 7, 3), "image": torch.randn(batch, 3, 8, 8)},
        modalities={"points": ["points"], "image": ["image"]},
        # The second concatenation joins what is fused with what it was made of.
        points=(point("", "concat", pooled(side("points", 15), side("image", 8))),),
        normalize="points",
    ),
)
