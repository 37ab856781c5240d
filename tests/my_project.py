"""The model of the README's first example, which imports it as `my_project`."""

from __future__ import annotations

import torch
from torch import nn


class MyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = nn.Sequential(nn.Conv2d(3, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.table_encoder = nn.Linear(40, 32)
        self.head = nn.Linear(96, 2)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.image_encoder(image), self.table_encoder(table)], dim=1))
