"""A small model for tests of commands, in a module that its recipe can name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

RULES = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "x"}]}


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x), self.right(y)], dim=1))


def example() -> dict[str, Tensor]:
    return {"x": torch.rand(6, 4), "y": torch.rand(6, 4)}
