"""Small encoders that the hand-written models share, so that each model shows only how it fuses."""

from __future__ import annotations

import torch
from torch import nn


class MapEncoder(nn.Module):
    """`[B, in_channels, H, W]` to `[B, channels, H/2, W/2]`."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x))


class ImageEncoder(nn.Module):
    """`[B, in_channels, H, W]` to `[B, features]`."""

    def __init__(self, in_channels: int, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(6, features, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        return x.mean(dim=(2, 3))


class VectorEncoder(nn.Sequential):
    """`[B, in_features]` to `[B, features]`."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__(nn.Linear(in_features, 12), nn.ReLU(), nn.Linear(12, features))


class TokenEncoder(nn.Module):
    """Token ids `[B, L]` to `[B, L, features]`."""

    def __init__(self, vocabulary: int, features: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, features)
        self.norm = nn.LayerNorm(features)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.embedding(ids))


class PatchEncoder(nn.Module):
    """`[B, in_channels, H, W]` to `[B, H/4 * W/4, features]`."""

    def __init__(self, in_channels: int, features: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, features, 4, stride=4)
        self.norm = nn.LayerNorm(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.patches(x).flatten(2).transpose(1, 2))
