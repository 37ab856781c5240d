"""The network: a branch for the drawing, one for the name, and a head on both. It does not mention RegBN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 32  # features of each branch


def _block(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)
    )


class TwoBranches(nn.Module):
    """picture [B, 3, 32, 32], name [B, 1024] -> logits [B, categories].

    A row of zeros is a modality that is missing: its features are zero, too.
    """

    def __init__(self, categories: int = 8, name_width: int = 1024) -> None:
        super().__init__()
        self.picture_net = nn.Sequential(
            _block(3, 16), _block(16, 32), _block(32, 64), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, WIDTH)
        )
        self.name_net = nn.Sequential(nn.Linear(name_width, 64), nn.ReLU(), nn.Linear(64, WIDTH))
        self.head = nn.Linear(2 * WIDTH, categories)

    def forward(self, picture: Tensor, name: Tensor) -> Tensor:
        drawn = self.picture_net(picture) * picture.flatten(1).any(1, keepdim=True)
        named = self.name_net(name) * name.any(1, keepdim=True)
        return self.head(torch.cat((drawn, named), dim=1))


def factory() -> tuple[TwoBranches, tuple[Tensor, Tensor]]:
    """The model and example inputs, as the command line takes them."""
    return TwoBranches(), (torch.rand(4, 3, 32, 32), torch.rand(4, 1024))
