"""Maps, volumes and points: sensors aligned in space, attention between scales, conditioned image generators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, flat, point, pooled, side, tokens
from ._parts import TokenEncoder


class TokenFusion(nn.Module):
    """One transformer over the tokens of two maps, given back as two maps (TransFuser; Prakash et al., 2021)."""

    def __init__(self, channels: int, anchors: int) -> None:
        super().__init__()
        self.anchors = anchors
        self.pool = nn.AdaptiveAvgPool2d(anchors)
        self.position = nn.Parameter(torch.zeros(1, 2 * anchors * anchors, channels))
        self.block = nn.TransformerEncoderLayer(channels, 2, 12, dropout=0.0, batch_first=True)

    def forward(self, image: torch.Tensor, lidar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch, channels = image.shape[:2]
        count = self.anchors * self.anchors
        image_tokens = self.pool(image).view(batch, channels, count).permute(0, 2, 1)
        lidar_tokens = self.pool(lidar).view(batch, channels, count).permute(0, 2, 1)
        x = self.block(torch.cat((image_tokens, lidar_tokens), dim=1) + self.position)
        image_out, lidar_out = x[:, :count], x[:, count:]
        size = (batch, channels, self.anchors, self.anchors)
        return image_out.permute(0, 2, 1).reshape(size), lidar_out.permute(0, 2, 1).reshape(size)


class TransFuser(nn.Module):
    """Two scales of token fusion, each added to its own map; the pooled maps are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.image_stages = nn.ModuleList([nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)])
        self.lidar_stages = nn.ModuleList([nn.Conv2d(2, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)])
        self.fusions = nn.ModuleList([TokenFusion(6, 2), TokenFusion(8, 2)])
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor, lidar: torch.Tensor) -> torch.Tensor:
        for image_stage, lidar_stage, fusion in zip(self.image_stages, self.lidar_stages, self.fusions, strict=True):
            image, lidar = F.relu(image_stage(image)), F.relu(lidar_stage(lidar))
            image_seen, lidar_seen = fusion(image, lidar)
            image = image + F.interpolate(image_seen, size=image.shape[-2:], mode="bilinear", align_corners=False)
            lidar = lidar + F.interpolate(lidar_seen, size=lidar.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(image.mean(dim=(2, 3)) + lidar.mean(dim=(2, 3)))


class Rectify(nn.Module):
    """CMX's cross-modal rectification (Zhang et al., 2023), by channels: each map takes in the other, weighted."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.mlp = nn.Sequential(nn.Linear(4 * channels, 6), nn.ReLU(), nn.Linear(6, 2 * channels), nn.Sigmoid())

    def forward(self, rgb: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.cat((rgb, x), dim=1)
        average = F.adaptive_avg_pool2d(both, 1).flatten(1)
        largest = F.adaptive_max_pool2d(both, 1).flatten(1)
        weights = self.mlp(torch.cat((average, largest), dim=1))
        weights = weights.reshape(-1, 2, self.channels, 1, 1).permute(1, 0, 2, 3, 4)
        return rgb + 0.5 * weights[1] * x, x + 0.5 * weights[0] * rgb


class CMX(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rgb = nn.Conv2d(3, 6, 3, 2, 1)
        self.x = nn.Conv2d(1, 6, 3, 2, 1)
        self.rectify = Rectify(6)
        self.embed = nn.Conv2d(12, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, rgb: torch.Tensor, thermal: torch.Tensor) -> torch.Tensor:
        rgb, thermal = self.rectify(self.rgb(rgb), self.x(thermal))
        return self.head(F.relu(self.embed(torch.cat((rgb, thermal), dim=1))))


class ChannelAttention(nn.Module):
    """A map scaled by its own pooled channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.conv(F.adaptive_avg_pool2d(x, 1)))


class ACNet(nn.Module):
    """Three branches (Hu et al., 2019): colour, depth, and a mixed one that both feed at every level."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb1, self.rgb2 = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.depth1, self.depth2 = nn.Conv2d(1, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.rgb_att1, self.rgb_att2 = ChannelAttention(6), ChannelAttention(8)
        self.depth_att1, self.depth_att2 = ChannelAttention(6), ChannelAttention(8)
        self.mixed2 = nn.Conv2d(6, 8, 3, 2, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, rgb: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        rgb, depth = F.relu(self.rgb1(rgb)), F.relu(self.depth1(depth))
        m = self.rgb_att1(rgb) + self.depth_att1(depth)
        rgb, depth = F.relu(self.rgb2(rgb)), F.relu(self.depth2(depth))
        m = F.relu(self.mixed2(m)) + self.rgb_att2(rgb) + self.depth_att2(depth)
        return self.head(m)


class AVSlowFast(nn.Module):
    """Slow and fast views of one clip, and its sound, which joins at two depths (Xiao et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.slow1, self.slow2 = nn.Conv3d(3, 6, 3, 1, 1), nn.Conv3d(6 + 4 + 2, 8, 3, 1, 1)
        self.fast1 = nn.Conv3d(3, 4, 3, 1, 1)
        self.lateral = nn.Conv3d(4, 4, (4, 1, 1), (4, 1, 1))
        self.audio1, self.audio2 = nn.Conv2d(1, 2, 3, 1, 1), nn.Conv2d(2, 3, 3, 1, 1)
        self.head = nn.Linear(8 + 3, 5)

    @staticmethod
    def _over_space(audio: torch.Tensor, slow: torch.Tensor) -> torch.Tensor:
        """`[B, C, F, T]` pooled over frequency and laid out beside every place of `[B, C, T, H, W]`."""
        pooled_audio = F.adaptive_avg_pool2d(audio, (1, slow.size(2))).squeeze(2)
        return pooled_audio[:, :, :, None, None].expand(-1, -1, -1, slow.size(3), slow.size(4))

    def forward(self, clip: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        slow, fast = self.slow1(clip[:, :, ::4]).relu(), self.fast1(clip).relu()
        audio = self.audio1(audio).relu()
        slow = torch.cat([slow, self.lateral(fast)], dim=1)
        slow = torch.cat([slow, self._over_space(audio, slow)], dim=1)
        slow, audio = self.slow2(slow).relu(), self.audio2(audio).relu()
        return self.head(torch.cat([slow.mean(dim=(2, 3, 4)), audio.mean(dim=(2, 3))], dim=1))


class PointPainting(nn.Module):
    """Every lidar point gets the image features of the pixel it projects to (Vora et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 6, 3, padding=1)
        self.mlp = nn.Sequential(nn.Linear(4 + 6, 12), nn.ReLU(), nn.Linear(12, 10))
        self.head = nn.Linear(10, 5)

    def forward(self, points: torch.Tensor, image: torch.Tensor, pixel_index: torch.Tensor) -> torch.Tensor:
        features = F.relu(self.backbone(image)).flatten(2)
        places = pixel_index.unsqueeze(1).expand(-1, features.size(1), -1)
        painted = torch.gather(features, 2, places).transpose(1, 2)
        return self.head(self.mlp(torch.cat([points, painted], dim=-1)).max(dim=1).values)


class SampledPainting(nn.Module):
    """The same with bilinear sampling at the points' own coordinates: where to look is no content."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 6, 3, padding=1)
        self.point_mlp = nn.Linear(4, 8)
        self.head = nn.Linear(14, 5)

    def forward(self, points: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        grid = points[..., :2].tanh().unsqueeze(2)
        sampled = F.grid_sample(self.backbone(image), grid, align_corners=False).squeeze(-1).permute(0, 2, 1)
        return self.head(torch.cat([F.relu(self.point_mlp(points)), sampled], dim=-1).amax(dim=1))


class BirdsEyeView(nn.Module):
    """BEVFusion-like (Liu et al., 2023): lidar pillars written into a grid, camera features sampled into it."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.size = size
        self.camera, self.pillar = nn.Conv2d(3, 6, 3, 2, 1), nn.Linear(4, 5)
        axis = torch.linspace(-0.9, 0.9, size)
        self.register_buffer("grid", torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1))
        self.fuse = nn.Conv2d(11, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, camera: torch.Tensor, lidar: torch.Tensor, cell_index: torch.Tensor) -> torch.Tensor:
        batch = camera.shape[0]
        view = F.grid_sample(self.camera(camera), self.grid.expand(batch, -1, -1, -1), align_corners=False)
        pillars = F.relu(self.pillar(lidar))
        canvas = pillars.new_zeros(batch, self.size * self.size, pillars.shape[-1])
        canvas = canvas.scatter_add(1, cell_index.unsqueeze(-1).expand_as(pillars), pillars)
        canvas = canvas.transpose(1, 2).reshape(batch, -1, self.size, self.size)
        return self.head(F.relu(self.fuse(torch.cat([view, canvas], dim=1))))


class TextBlock(nn.Module):
    """A diffusion UNet's attention block: pixels as tokens read the text, and become a map again."""

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, channels)
        self.proj_in, self.proj_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        hidden = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        q, k, v = self.to_q(hidden), self.to_k(context), self.to_v(context)
        q, k, v = (t.reshape(batch, -1, 2, channels // 2).transpose(1, 2) for t in (q, k, v))
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, channels)
        hidden = (hidden + read).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return self.proj_out(hidden) + x


class ResBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, time: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, in_channels)
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.time = nn.Linear(time, channels)
        self.skip = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        return self.skip(x) + F.silu(self.conv(F.silu(self.norm(x))) + self.time(emb)[:, :, None, None])


class TextToImageUNet(nn.Module):
    """A latent diffusion UNet in miniature (Rombach et al., 2022): text is read on the way down, below, and up."""

    def __init__(self, channels: int = 8, context: int = 6) -> None:
        super().__init__()
        self.text_encoder = TokenEncoder(40, context)
        self.conv_in = nn.Conv2d(4, channels, 3, padding=1)
        self.down, self.mid = ResBlock(channels, channels, 8), ResBlock(channels, channels, 8)
        self.up = ResBlock(2 * channels, channels, 8)
        self.down_text, self.mid_text = TextBlock(channels, context), TextBlock(channels, context)
        self.up_text = TextBlock(channels, context)
        self.conv_out = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        frequencies = torch.exp(torch.arange(4) * -1.5)
        angles = timestep[:, None].float() * frequencies[None]
        emb = torch.cat([angles.sin(), angles.cos()], dim=-1)
        context = self.text_encoder(text)
        skip = self.down_text(self.down(self.conv_in(latents), emb), context)
        x = self.mid_text(self.mid(F.avg_pool2d(skip, 2), emb), context)
        x = torch.cat([F.interpolate(x, scale_factor=2), skip], dim=1)
        return self.conv_out(self.up_text(self.up(x, emb), context))


class JointBlock(nn.Module):
    """MM-DiT (Esser et al., 2024): two streams with weights of their own, one attention over both."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_x, self.norm_c = (nn.LayerNorm(features, elementwise_affine=False) for _ in range(2))
        self.modulation_x, self.modulation_c = nn.Linear(features, 3 * features), nn.Linear(features, 3 * features)
        self.qkv_x, self.qkv_c = nn.Linear(features, 3 * features), nn.Linear(features, 3 * features)
        self.out_x, self.out_c = nn.Linear(features, features), nn.Linear(features, features)

    def _heads(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in x.chunk(3, dim=-1)]

    def forward(self, x: torch.Tensor, c: torch.Tensor, emb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shift_x, scale_x, gate_x = self.modulation_x(F.silu(emb))[:, None].chunk(3, dim=-1)
        shift_c, scale_c, gate_c = self.modulation_c(F.silu(emb))[:, None].chunk(3, dim=-1)
        pairs = zip(
            self._heads(self.qkv_c(self.norm_c(c) * (1 + scale_c) + shift_c)),
            self._heads(self.qkv_x(self.norm_x(x) * (1 + scale_x) + shift_x)),
            strict=True,
        )
        q, k, v = (torch.cat(pair, dim=2) for pair in pairs)
        joint = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        c_read, x_read = joint.split([c.shape[1], x.shape[1]], dim=1)
        return x + gate_x * self.out_x(x_read), c + gate_c * self.out_c(c_read)


class MultimodalDiffusionTransformer(nn.Module):
    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(4, features, 2, stride=2)
        self.text_encoder = TokenEncoder(40, features)
        self.time = nn.Linear(8, features)
        self.blocks = nn.ModuleList([JointBlock(features, 2) for _ in range(2)])
        self.head = nn.Linear(features, 16)

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        angles = timestep[:, None].float() * torch.exp(torch.arange(4) * -1.5)
        emb = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        x, c = self.patches(latents).flatten(2).transpose(1, 2), self.text_encoder(text)
        for block in self.blocks:
            x, c = block(x, c, emb)
        x = self.head(x).transpose(1, 2)
        return F.fold(x, output_size=latents.shape[-2:], kernel_size=2, stride=2), c


class AdaptiveInstanceNorm(nn.Module):
    """AdaIN (Huang and Belongie, 2017): content takes on the channel statistics of a style."""

    def forward(self, content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        mean, std = style.flatten(2).mean(dim=2), style.flatten(2).std(dim=2)
        normalised = F.instance_norm(content)
        return normalised * std[:, :, None, None] + mean[:, :, None, None]


class StyleTransfer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.adain = AdaptiveInstanceNorm()
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(6, 3, 3, padding=1))

    def forward(self, content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.adain(self.encoder(content), self.encoder(style)))


class DynamicConvolution(nn.Module):
    """The query makes the kernels; samples are folded into groups, as one convolution wants them."""

    def __init__(self, channels: int, context: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.kernels = nn.Linear(context, out_channels * channels)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        kernels = self.kernels(context).view(batch * self.out_channels, channels, 1, 1)
        out = F.conv2d(x.reshape(1, batch * channels, height, width), kernels, groups=batch)
        return out.view(batch, self.out_channels, height, width)


class ReferringSegmentation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = nn.Conv2d(3, 6, 3, 2, 1)
        self.text_encoder = nn.EmbeddingBag(40, 5)
        self.dynamic = DynamicConvolution(6, 5, 4)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.dynamic(self.image_encoder(image), self.text_encoder(text))))


class SoundSeparation(nn.Module):
    """A spectrogram UNet with what is seen tiled into its bottleneck (Gao and Grauman, 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 4, 4, 2, 1), nn.Conv2d(4, 6, 4, 2, 1)
        self.up2, self.up1 = nn.ConvTranspose2d(6 + 5, 4, 4, 2, 1), nn.ConvTranspose2d(8, 1, 4, 2, 1)
        self.frame_encoder = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, sound: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
        x1 = F.leaky_relu(self.down1(sound), 0.2)
        x2 = F.leaky_relu(self.down2(x1), 0.2)
        seen = self.frame_encoder(frame).repeat(1, 1, x2.shape[-2], x2.shape[-1])
        up = F.relu(self.up2(torch.cat((seen, x2), dim=1)))
        mask = torch.sigmoid(self.up1(torch.cat((x1, up), dim=1)))
        return mask * sound


class ChannelsLast(nn.Module):
    """No convolution anywhere: maps lie as `[B, H, W, C]` from the first layer to the last."""

    def __init__(self) -> None:
        super().__init__()
        self.optical, self.radar = nn.Linear(4, 8), nn.Linear(2, 6)
        self.optical_norm, self.radar_norm = nn.LayerNorm(8), nn.LayerNorm(6)
        self.mix, self.head = nn.Linear(14, 10), nn.Linear(10, 3)

    def forward(self, optical: torch.Tensor, radar: torch.Tensor) -> torch.Tensor:
        optical = F.gelu(self.optical_norm(self.optical(optical)))
        radar = F.gelu(self.radar_norm(self.radar(radar)))
        return self.head(F.gelu(self.mix(torch.cat((optical, radar), dim=-1))))


RGB_AND_DEPTH = {"rgb": ["rgb"], "depth": ["depth"]}
IMAGE_AND_LIDAR = {"image": ["image"], "lidar": ["lidar"]}
LATENTS_AND_TEXT = {"latents": ["latents"], "text": ["text"]}


def latents_and_text(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 4, 8, 8), torch.arange(batch) * 7 + 1, tokens(batch, 5, vocabulary=40)


CASES = (
    ZooCase(
        name="transfuser",
        build=TransFuser,
        inputs=lambda batch: (torch.randn(batch, 3, 16, 16), torch.randn(batch, 2, 16, 16)),
        modalities=IMAGE_AND_LIDAR,
        # What comes back from the joint tokens is added to the very map it was made from: both stay what they were.
        points=(
            point("fusions.0", "concat", pooled(side("image", 6), side("lidar", 6)), level="middle"),
            point("fusions.1", "concat", pooled(side("image", 8), side("lidar", 8)), level="middle"),
            point("", "sum", flat(side("image", 8), side("lidar", 8))),
        ),
        normalize="image",
    ),
    ZooCase(
        name="cmx_rectification",
        build=CMX,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 1, 8, 8)),
        modalities={"rgb": ["rgb"], "thermal": ["thermal"]},
        # The weights hold both, what they scale keeps its home; each map then takes in the other, and both re-meet.
        points=(
            point("rectify", "concat", flat(side("rgb", 6, 4, 4), side("thermal", 6, 4, 4)), level="middle"),
            point("rectify", "sum", flat(side("rgb", 6, 4, 4), side("thermal", 6, 4, 4)), level=None),
            point("rectify", "sum", flat(side("rgb", 6, 4, 4), side("thermal", 6, 4, 4)), level=None),
            point("", "concat", meets=("rgb+thermal",), level="remeeting", selected=False, sites_known=False),
        ),
        rules=(
            {"id": "weights", "match": {"kind": "concat", "owner": "rectify"}, "normalize": "rgb"},
            {"id": "sums", "match": {"kind": "sum"}, "normalize": "rgb"},
        ),
        normalize="rgb",
    ),
    ZooCase(
        name="acnet",
        build=ACNet,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 1, 8, 8)),
        modalities=RGB_AND_DEPTH,
        # At the second level colour and depth enter the mixed branch again, one after the other.
        points=(
            point("", "sum", flat(side("rgb", 6, 4, 4), side("depth", 6, 4, 4)), level="middle"),
            point("", "sum", flat(side("rgb", 8, 2, 2), side("rgb+depth", 8, 2, 2)), level="middle"),
            point("", "sum", flat(side("rgb+depth", 8, 2, 2), side("depth", 8, 2, 2))),
        ),
        rules=({"id": "levels", "match": {"kind": "sum"}, "pairs": "all"},),
        normalize="rgb",
    ),
    ZooCase(
        name="av_slowfast",
        build=AVSlowFast,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 4, 4), torch.randn(batch, 1, 8, 16)),
        modalities={"clip": ["clip"], "audio": ["audio"]},
        # Slow and fast are one modality. Sound joins the slow pathway, and the mixed pathway in the end.
        points=(
            point("", "concat", flat(side("clip", 10, 2, 4, 4), side("audio", 2, 2, 4, 4)), level="middle"),
            point("", "concat", flat(side("clip+audio", 8), side("audio", 3))),
        ),
        normalize="clip",
        against="audio",
    ),
    ZooCase(
        name="point_painting",
        build=PointPainting,
        inputs=lambda batch: (
            torch.randn(batch, 7, 4),
            torch.randn(batch, 3, 6, 6),
            torch.randint(0, 36, (batch, 7)),
        ),
        modalities={"lidar": ["points"], "image": ["image"]},
        points=(point("", "concat", pooled(side("image", 6), side("lidar", 4))),),
        normalize="image",
        against="lidar",
    ),
    ZooCase(
        name="sampled_painting",
        build=SampledPainting,
        inputs=lambda batch: (torch.randn(batch, 7, 4), torch.randn(batch, 3, 6, 6)),
        modalities={"lidar": ["points"], "image": ["image"]},
        points=(point("", "concat", pooled(side("image", 6), side("lidar", 8))),),
        normalize="image",
        against="lidar",
    ),
    ZooCase(
        name="birds_eye_view",
        build=BirdsEyeView,
        inputs=lambda batch: (
            torch.randn(batch, 3, 8, 8),
            torch.randn(batch, 9, 4),
            torch.randint(0, 16, (batch, 9)),
        ),
        modalities={"camera": ["camera"], "lidar": ["lidar"]},
        points=(point("", "concat", flat(side("camera", 6, 4, 4), side("lidar", 5, 4, 4))),),
        normalize="camera",
    ),
    ZooCase(
        name="text_to_image_unet",
        build=TextToImageUNet,
        inputs=latents_and_text,
        modalities=LATENTS_AND_TEXT,
        points=(
            point("down_text", "attention", pooled(side("latents", 8), side("text", 6)), level="middle"),
            point("mid_text", "attention", pooled(side("latents", 8), side("text", 6)), level="middle"),
            point("up_text", "attention", pooled(side("latents", 8), side("text", 6))),
        ),
        normalize="latents",
        against="text",
    ),
    ZooCase(
        name="mm_dit",
        build=MultimodalDiffusionTransformer,
        inputs=latents_and_text,
        modalities=LATENTS_AND_TEXT,
        # Queries, keys and values of both streams are joined, by heads of 4, in one line; residuals keep them apart.
        points=tuple(
            point(f"blocks.{block}", "concat", pooled(side("latents", 4), side("text", 4)), level=None)
            for block in range(2)
            for _ in "qkv"
        ),
        normalize="latents",
        against="text",
    ),
    ZooCase(
        name="adaptive_instance_norm",
        build=StyleTransfer,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), torch.randn(batch, 3, 8, 8)),
        modalities={"content": ["content"], "style": ["style"]},
        points=(point("adain", "product", flat(side("content", 6, 4, 4), side("style", 6)), calls=2),),
        normalize="content",
    ),
    ZooCase(
        name="dynamic_convolution",
        build=ReferringSegmentation,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), tokens(batch, 5, vocabulary=40)),
        modalities={"image": ["image"], "text": ["text"]},
        # The convolution sees samples folded into channels; the owner's own inputs are not folded.
        points=(point("dynamic", "matmul", flat(side("image", 6, 4, 4), side("text", 5))),),
        normalize="image",
    ),
    ZooCase(
        name="sound_separation",
        build=SoundSeparation,
        inputs=lambda batch: (torch.randn(batch, 1, 16, 16), torch.randn(batch, 3, 8, 8)),
        modalities={"sound": ["sound"], "frame": ["frame"]},
        # The skip connection is an ancestor of what it joins, and so is the sound that the mask scales.
        points=(point("", "concat", flat(side("sound", 6, 4, 4), side("frame", 5, 4, 4))),),
        normalize="sound",
    ),
    ZooCase(
        name="channels_last_maps",
        build=ChannelsLast,
        inputs=lambda batch: (torch.randn(batch, 4, 5, 4), torch.randn(batch, 4, 5, 2)),
        modalities={"optical": ["optical"], "radar": ["radar"]},
        points=(point("", "concat", flat(side("optical", 8, 4, 5), side("radar", 6, 4, 5))),),
        normalize="optical",
    ),
)
