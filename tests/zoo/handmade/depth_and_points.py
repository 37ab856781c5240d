"""Colour with depth into one decoder, and points of a scan that look up what a camera saw where they are."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, flat, point, side


class ConvNormAct(nn.Sequential):
    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
        )


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 1), nn.ReLU(), nn.Conv2d(channels // 2, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weighting = F.adaptive_avg_pool2d(x, 1)
        return x * self.fc(weighting)


class SqueezeAndExciteFusionAdd(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.se_rgb, self.se_depth = SqueezeExcite(channels), SqueezeExcite(channels)

    def forward(self, rgb: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        rgb = self.se_rgb(rgb)
        depth = self.se_depth(depth)
        return rgb + depth


class PyramidPooling(nn.Module):
    """Context at several scales, each laid beside the map itself."""

    def __init__(self, channels: int, bins: tuple[int, ...]) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            [nn.Sequential(nn.AdaptiveAvgPool2d(b), nn.Conv2d(channels, channels // 2, 1)) for b in bins]
        )
        self.final_conv = ConvNormAct(channels + channels // 2 * len(bins), channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[-2:]
        out = [x]
        for feature in self.features:
            out.append(F.interpolate(feature(x), size, mode="nearest"))
        return self.final_conv(torch.cat(out, 1))


class DecoderModule(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvNormAct(in_channels, out_channels)
        self.side_output = nn.Conv2d(out_channels, 4, 1)

    def forward(
        self, decoder_features: torch.Tensor, encoder_features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        out = self.conv(decoder_features)
        side_out = self.side_output(out) if self.training else None
        out = F.interpolate(out, scale_factor=2, mode="nearest")
        return out + encoder_features, side_out


class ESANet(nn.Module):
    """RGB-D segmentation (Seichter et al., 2021): depth is added into colour at each level; the decoder has skips."""

    def __init__(self, widths: tuple[int, ...] = (4, 6, 8)) -> None:
        super().__init__()
        chain = list(zip((3, *widths), widths, strict=False))
        self.encoder_rgb = nn.ModuleList([ConvNormAct(a, b, 2) for a, b in chain])
        self.encoder_depth = nn.ModuleList([ConvNormAct(1 if i == 0 else a, b, 2) for i, (a, b) in enumerate(chain)])
        self.se_layers = nn.ModuleList([SqueezeAndExciteFusionAdd(w) for w in widths])
        self.skip_layers = nn.ModuleList([nn.Conv2d(a, a, 1) for a in widths[:-1]])
        self.context_module = PyramidPooling(widths[-1], (1, 2))
        self.decoder = nn.ModuleList([DecoderModule(b, a) for a, b in pairwise(widths)][::-1])
        self.conv_out = nn.Conv2d(widths[0], 4, 3, padding=1)

    def forward(self, image: torch.Tensor, depth: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        skips: list[torch.Tensor] = []
        fuse, levels = image, len(self.se_layers)
        for level in range(levels):
            rgb = self.encoder_rgb[level](fuse)
            depth = self.encoder_depth[level](depth)
            fuse = self.se_layers[level](rgb, depth)
            if level < levels - 1:
                skips.append(self.skip_layers[level](fuse))
        out, sides = self.context_module(fuse), []
        for module in self.decoder:
            out, side_out = module(out, skips.pop())
            sides.append(side_out)
        out = self.conv_out(out)
        return (out, *sides) if self.training else out


class VoteNet(nn.Module):
    """Votes of one tower: each seed point and an offset of it."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(in_features, 12, 1), nn.Conv1d(12, 3 + 5, 1)
        self.bn1 = nn.BatchNorm1d(12)

    def forward(self, xyz: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
        net = self.conv2(F.relu(self.bn1(self.conv1(features)))).transpose(2, 1)
        return {"vote_xyz": xyz + net[..., :3], "scores": net[..., 3:]}


class ImVoteNet(nn.Module):
    """Boosting votes in points with an image (Qi et al., 2020): three towers, one for each kind of cue and a joint one.

    Every seed takes the texture of the pixel it projects to, and how far that pixel's 2D vote is from it.
    """

    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.size = size
        self.texture, self.votes_2d = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
        self.sa = nn.Sequential(nn.Conv1d(4, 10, 1), nn.ReLU(), nn.Conv1d(10, 8, 1))
        self.towers = nn.ModuleDict({"joint": VoteNet(8 + 5 + 2), "pc_only": VoteNet(8), "img_only": VoteNet(5 + 2)})

    def _project(self, xyz: torch.Tensor, calib: torch.Tensor) -> torch.Tensor:
        uvz = torch.matmul(xyz, calib.transpose(1, 2))
        return torch.sigmoid(uvz[..., :2] / (1 + uvz[..., 2:].abs())) * (self.size - 1)

    @staticmethod
    def _look_up(cue: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.gather(cue.flatten(2), 2, index.unsqueeze(1).expand(-1, cue.shape[1], -1))

    def forward(self, inputs: dict[str, torch.Tensor], joint_only: bool = False) -> dict[str, dict[str, torch.Tensor]]:
        xyz, image = inputs["point_clouds"][..., :3], inputs["img"]
        seeds = self.sa(inputs["point_clouds"].transpose(1, 2))
        uv = self._project(xyz, inputs["calib_positions"])
        index = uv[..., 1].round().long() * self.size + uv[..., 0].round().long()
        texture = self._look_up(F.relu(self.texture(image)), index)
        geometric = self._look_up(self.votes_2d(image), index) - uv.transpose(1, 2)
        cues = torch.cat((geometric, texture), 1)
        features = {"joint": torch.cat((seeds, cues), 1), "pc_only": seeds, "img_only": cues}
        names = ["joint"] if joint_only else list(self.towers)
        return {name: self.towers[name](xyz, features[name]) for name in names}


class IALayer(nn.Module):
    """How much of the image each point may take in, from both."""

    def __init__(self, image_channels: int, point_channels: int, hidden: int) -> None:
        super().__init__()
        self.ic, self.pc = image_channels, point_channels
        self.conv1 = nn.Sequential(nn.Conv1d(image_channels, point_channels, 1), nn.BatchNorm1d(point_channels))
        self.fc1, self.fc2 = nn.Linear(image_channels, hidden), nn.Linear(point_channels, hidden)
        self.fc3 = nn.Linear(hidden, 1)

    def forward(self, img_feas: torch.Tensor, point_feas: torch.Tensor) -> torch.Tensor:
        batch = img_feas.size(0)
        img_feas_f = img_feas.transpose(1, 2).contiguous().view(-1, self.ic)
        point_feas_f = point_feas.transpose(1, 2).contiguous().view(-1, self.pc)
        ri, rp = self.fc1(img_feas_f), self.fc2(point_feas_f)
        att = torch.sigmoid(self.fc3(torch.tanh(ri + rp)))
        att = att.squeeze(1).view(batch, 1, -1)
        return F.relu(self.conv1(img_feas)) * att


class AttenFusionConv(nn.Module):
    def __init__(self, image_channels: int, point_channels: int) -> None:
        super().__init__()
        self.IA_Layer = IALayer(image_channels, point_channels, 6)
        self.conv1 = nn.Conv1d(2 * point_channels, point_channels, 1)

    def forward(self, point_features: torch.Tensor, img_features: torch.Tensor) -> torch.Tensor:
        img_features = self.IA_Layer(img_features, point_features)
        return F.relu(self.conv1(torch.cat([point_features, img_features], dim=1)))


class EPNet(nn.Module):
    """LI-Fusion at two scales (Huang et al., 2020): points sample the image's maps and weigh them before they join."""

    def __init__(self) -> None:
        super().__init__()
        self.img_blocks = nn.ModuleList([nn.Conv2d(3, 5, 3, 2, 1), nn.Conv2d(5, 7, 3, 2, 1)])
        self.sa_modules = nn.ModuleList([nn.Conv1d(3, 8, 1), nn.Conv1d(8, 10, 1)])
        self.fusion_conv = nn.ModuleList([AttenFusionConv(5, 8), AttenFusionConv(7, 10)])
        self.cls_layer = nn.Conv1d(10, 3, 1)

    def forward(self, xyz: torch.Tensor, image: torch.Tensor, xy_position: torch.Tensor) -> torch.Tensor:
        features, img = xyz.transpose(1, 2), image
        for img_block, sa, fusion in zip(self.img_blocks, self.sa_modules, self.fusion_conv, strict=True):
            features = F.relu(sa(features))
            img = F.relu(img_block(img))
            gathered = F.grid_sample(img, xy_position.unsqueeze(1), align_corners=True).squeeze(2)
            features = fusion(features, gathered)
        return self.cls_layer(features)


def scan(batch: int) -> tuple[dict[str, torch.Tensor]]:
    clouds, images = torch.randn(batch, 7, 4), torch.randn(batch, 3, 6, 6)
    return ({"point_clouds": clouds, "img": images, "calib_positions": torch.eye(3).repeat(batch, 1, 1)},)


EVERY_PAIR = {"id": "all", "pairs": "all"}

CASES = (
    ZooCase(
        name="esanet",
        build=ESANet,
        inputs=lambda batch: (torch.randn(batch, 3, 16, 16), torch.randn(batch, 1, 16, 16)),
        modalities={"rgb": ["image"], "depth": ["depth"]},
        # Depth enters the colour stream at each level. Skips lead the joint stream around a part of itself.
        points=(
            point("se_layers.0", "sum", flat(side("rgb", 4, 8, 8), side("depth", 4, 8, 8)), level="middle"),
            point("se_layers.1", "sum", flat(side("rgb+depth", 6, 4, 4), side("depth", 6, 4, 4)), level="middle"),
            point("se_layers.2", "sum", flat(side("rgb+depth", 8, 2, 2), side("depth", 8, 2, 2))),
        ),
        normalize="rgb",
        against="depth",
    ),
    ZooCase(
        name="imvotenet",
        build=ImVoteNet,
        inputs=scan,
        modalities={"points": ["inputs.point_clouds"], "image": ["inputs.img"]},
        # A pixel's vote minus where its point is: image and points in two numbers. These lie beside the texture, which
        # is the image's, and the joint tower lays the points' own features beside both. The votes are added to the very
        # coordinates that they were made from.
        points=(
            point("", "sum", flat(side("points", 2, 7), side("image", 2, 7)), level="middle"),
            point("", "concat", flat(side("points+image", 2, 7), side("image", 5, 7)), level="middle"),
            point("", "concat", flat(side("points", 8, 7), side("points+image", 7, 7))),
        ),
        rules=({**EVERY_PAIR, "match": {"kind": ["sum", "concat"]}},),
        normalize="points",
    ),
    ZooCase(
        name="li_fusion",
        build=EPNet,
        inputs=lambda batch: (torch.randn(batch, 9, 3), torch.randn(batch, 3, 16, 16), torch.rand(batch, 9, 2) * 2 - 1),
        modalities={"points": ["xyz"], "image": ["image"]},
        # Where the points look is no content. The weights are made of rows, a point of a scan each; what they weigh
        # stays the image's, so that it meets the points again behind.
        points=(
            point("fusion_conv.0.IA_Layer", "sum", flat(side("image", 6), side("points", 6)), level="middle"),
            point("fusion_conv.0", "concat", flat(side("image", 8, 9), side("points", 8, 9)), level="middle"),
            point("fusion_conv.1.IA_Layer", "sum", flat(side("image", 6), side("points+image", 6)), level="middle"),
            point("fusion_conv.1", "concat", flat(side("image", 10, 9), side("points+image", 10, 9))),
        ),
        rules=({**EVERY_PAIR, "match": {"kind": ["sum", "concat"]}},),
        normalize="points",
    ),
)
