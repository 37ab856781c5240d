"""Branches that meet again and again on their way up: every level is a fusion point of its own."""

from __future__ import annotations

import torch
from torch import nn

from .._case import ZooCase, flat, point, side
from ._parts import MapEncoder


class SqueezeExciteTransfer(nn.Module):
    """One multimodal transfer module (Joze et al., 2020): squeeze both, join, excite each by its own gate."""

    def __init__(self, a_channels: int, b_channels: int) -> None:
        super().__init__()
        joint = (a_channels + b_channels) // 2
        self.joint = nn.Linear(a_channels + b_channels, joint)
        self.excite_a = nn.Linear(joint, a_channels)
        self.excite_b = nn.Linear(joint, b_channels)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        squeezed = [x.flatten(2).mean(dim=-1) for x in (a, b)]
        joint = torch.relu(self.joint(torch.cat(squeezed, dim=1)))
        gate_a = torch.sigmoid(self.excite_a(joint))
        gate_b = torch.sigmoid(self.excite_b(joint))
        return a * gate_a[:, :, None, None], b * gate_b[:, :, None, None]


class TransferNetwork(nn.Module):
    """Two CNNs with a transfer module after each stage and a concatenation at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb_stages = nn.ModuleList([MapEncoder(3, 6), MapEncoder(6, 8)])
        self.depth_stages = nn.ModuleList([MapEncoder(1, 4), MapEncoder(4, 6)])
        self.transfers = nn.ModuleList([SqueezeExciteTransfer(6, 4), SqueezeExciteTransfer(8, 6)])
        self.head = nn.Linear(14, 5)

    def forward(self, rgb: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        for rgb_stage, depth_stage, transfer in zip(self.rgb_stages, self.depth_stages, self.transfers, strict=True):
            rgb, depth = transfer(rgb_stage(rgb), depth_stage(depth))
        return self.head(torch.cat([rgb.mean(dim=(2, 3)), depth.mean(dim=(2, 3))], dim=1))


class FuseNet(nn.Module):
    """The depth encoder's features are added to the RGB encoder's at every level (Hazirbas et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb_stages = nn.ModuleList([MapEncoder(3, 4), MapEncoder(4, 6), MapEncoder(6, 8)])
        self.depth_stages = nn.ModuleList([MapEncoder(1, 4), MapEncoder(4, 6), MapEncoder(6, 8)])
        self.head = nn.Linear(8, 5)

    def forward(self, rgb: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        for rgb_stage, depth_stage in zip(self.rgb_stages, self.depth_stages, strict=True):
            rgb, depth = rgb_stage(rgb), depth_stage(depth)
            rgb = rgb + depth
        return self.head(rgb.mean(dim=(2, 3)))


class Lateral(nn.Module):
    """Brings the fast path's features to the slow path's frame rate and joins them to it."""

    def __init__(self, fast_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(fast_channels, channels, (5, 1, 1), stride=(4, 1, 1), padding=(2, 0, 0))

    def forward(self, paths: list[torch.Tensor]) -> list[torch.Tensor]:
        slow, fast = paths
        return [torch.cat([slow, torch.relu(self.conv(fast))], dim=1), fast]


def video_stage(in_channels: int, channels: int, frames: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(in_channels, channels, (frames, 3, 3), stride=(1, 2, 2), padding=(frames // 2, 1, 1)),
        nn.BatchNorm3d(channels),
        nn.ReLU(),
    )


class SlowFast(nn.Module):
    """Two frame rates of one scene, with lateral connections from fast to slow (Feichtenhofer et al., 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.slow_stages = nn.ModuleList([video_stage(3, 6, 1), video_stage(10, 8, 1), video_stage(16, 12, 3)])
        self.fast_stages = nn.ModuleList([video_stage(3, 2, 5), video_stage(2, 4, 3), video_stage(4, 6, 3)])
        self.laterals = nn.ModuleList([Lateral(2, 4), Lateral(4, 8)])
        self.head = nn.Linear(18, 5)

    def forward(self, paths: list[torch.Tensor]) -> torch.Tensor:
        for level, (slow_stage, fast_stage) in enumerate(zip(self.slow_stages, self.fast_stages, strict=True)):
            paths = [slow_stage(paths[0]), fast_stage(paths[1])]
            if level < len(self.laterals):
                paths = self.laterals[level](paths)
        slow, fast = (x.mean(dim=(2, 3, 4)) for x in paths)
        return self.head(torch.cat([slow, fast], dim=1))


class CentralFusion(nn.Module):
    """A weighted sum of the central stream, where there is one, and the two unimodal ones."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(3) / 3)

    def forward(self, central: torch.Tensor | None, audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        if central is None:
            return self.weights[0] * audio + self.weights[1] * video
        return self.weights[2] * central + self.weights[0] * audio + self.weights[1] * video


class CentralNet(nn.Module):
    """A third network that takes in both unimodal ones at every level (Vielzeuf et al., 2018)."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.audio_layers = nn.ModuleList([nn.Linear(8, width), nn.Linear(width, width)])
        self.video_layers = nn.ModuleList([nn.Linear(9, width), nn.Linear(width, width)])
        self.central_layer = nn.Linear(width, width)
        self.fusions = nn.ModuleList([CentralFusion(), CentralFusion()])
        self.heads = nn.ModuleList([nn.Linear(width, 4) for _ in range(3)])

    def forward(self, audio: torch.Tensor, video: torch.Tensor) -> list[torch.Tensor]:
        central = None
        for level, fusion in enumerate(self.fusions):
            audio = torch.relu(self.audio_layers[level](audio))
            video = torch.relu(self.video_layers[level](video))
            central = None if central is None else torch.relu(self.central_layer(central))
            central = fusion(central, audio, video)
        return [head(x) for head, x in zip(self.heads, (audio, video, central), strict=True)]


def rgb_and_depth(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 16, 16), torch.randn(batch, 1, 16, 16)


MODALITIES = {"rgb": ["rgb"], "depth": ["depth"]}

CASES = (
    ZooCase(
        name="mmtm",
        build=TransferNetwork,
        inputs=rgb_and_depth,
        modalities=MODALITIES,
        # The gates hold both modalities, but a gate leaves the home of what it scales: the streams stay apart
        # and the next level meets again.
        points=(
            point("transfers.0", "concat", flat(side("rgb", 6), side("depth", 4)), level="middle"),
            point("transfers.1", "concat", flat(side("rgb", 8), side("depth", 6)), level="middle"),
            point("", "concat", flat(side("rgb", 8), side("depth", 6)), level="late"),
        ),
        normalize="rgb",
        stage=1,
    ),
    ZooCase(
        name="fusenet",
        build=FuseNet,
        inputs=rgb_and_depth,
        modalities=MODALITIES,
        # After level 0 the RGB stream is fused; each fresh depth map re-enters it.
        points=(
            point("", "sum", flat(side("rgb", 4, 8, 8), side("depth", 4, 8, 8)), level="middle"),
            point("", "sum", flat(side("rgb+depth", 6, 4, 4), side("depth", 6, 4, 4)), level="middle"),
            point("", "sum", flat(side("rgb+depth", 8, 2, 2), side("depth", 8, 2, 2)), level="late"),
        ),
        normalize="rgb",
        against="depth",
        stage=1,
    ),
    ZooCase(
        name="slowfast",
        build=SlowFast,
        inputs=lambda batch: ([torch.randn(batch, 3, 2, 16, 16), torch.randn(batch, 3, 8, 16, 16)],),
        modalities={"slow": ["paths.0"], "fast": ["paths.1"]},
        points=(
            point("laterals.0", "concat", flat(side("slow", 6, 2, 8, 8), side("fast", 4, 2, 8, 8)), level="middle"),
            point(
                "laterals.1",
                "concat",
                flat(side("slow+fast", 8, 2, 4, 4), side("fast", 8, 2, 4, 4)),
                level="middle",
            ),
            point("", "concat", flat(side("slow+fast", 12), side("fast", 6)), level="late"),
        ),
        normalize="slow",
        against="fast",
    ),
    ZooCase(
        name="centralnet",
        build=CentralNet,
        inputs=lambda batch: (torch.randn(batch, 8), torch.randn(batch, 9)),
        modalities={"audio": ["audio"], "video": ["video"]},
        # At the second level each unimodal stream re-enters the central one by an addition of its own.
        points=(
            point("fusions.0", "sum", flat(side("audio", 10), side("video", 10)), level="middle"),
            point("fusions.1", "sum", flat(side("audio", 10), side("audio+video", 10)), level="middle"),
            point("fusions.1", "sum", flat(side("video", 10), side("audio+video", 10)), level="late"),
        ),
        rules=(
            {"id": "first", "match": {"owner": "fusions.0"}, "normalize": "audio"},
            {"id": "audio", "match": {"owner": "fusions.1", "nth": 0}, "normalize": "audio"},
            {"id": "video", "match": {"owner": "fusions.1"}, "normalize": "video"},
        ),
        normalize="audio",
    ),
)
