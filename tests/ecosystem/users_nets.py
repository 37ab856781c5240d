"""Models as a user's module has them: nothing of the tests is imported, so that they can go into a package."""

import torch
from torch import Tensor, nn


class Joins(nn.Module):
    """RegBN goes into the source of the root."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b, self.head = nn.Linear(6, 8), nn.Linear(5, 4), nn.Linear(12, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1))


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(12, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.out(torch.cat([left, right], dim=-1))


class HasPart(nn.Module):
    """RegBN goes in by a hook on a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b, self.part = nn.Linear(6, 8), nn.Linear(5, 4), Part()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.part(self.enc_a(a), self.enc_b(b))


class HasJoins(nn.Module):
    """RegBN goes into the source of a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.joins = Joins()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.joins(a, b)
