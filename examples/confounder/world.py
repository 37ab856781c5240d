"""The data: a confounder of known strength that goes with the label in training and not in testing.

One of the shared factors is the confounder. f holds a weak signal of the label and all shared factors strongly; g holds
the shared factors alone. Everything is drawn from a seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH = 32
LABEL = 1.2  # length of the label's direction in f, the noise being 1 in each feature
SHARED = 3.0  # length of each shared factor's direction, in f and in g


@dataclass(frozen=True)
class Rows:
    """f, g: [N, 32]. label, confounder: [N], 0 or 1. f_true: f without what the shared factors put there."""

    f: Tensor
    g: Tensor
    label: Tensor
    confounder: Tensor
    f_true: Tensor


@dataclass(frozen=True)
class World:
    """Training rows, in which the confounder agrees with the label with chance rho, and test rows, with chance 1/2."""

    train: Rows
    test: Rows


def draw(factors: int, rho: float, seed: int, train: int, test: int) -> World:
    """A world with `factors` shared factors. Worlds of one seed differ in nothing but what is asked for."""
    generator = torch.Generator().manual_seed(seed)
    label_to_f = LABEL * _directions(1, generator)
    to_f, to_g = SHARED * _directions(factors, generator), SHARED * _directions(factors, generator)

    def rows(count: int, agreeing: float) -> Rows:
        label = torch.randint(2, (count,), generator=generator)
        agrees = torch.rand(count, generator=generator) < agreeing
        confounder = torch.where(agrees, label, 1 - label)
        shared = torch.randn(count, factors, generator=generator)
        shared[:, 0] = 2.0 * confounder - 1.0 + 0.3 * shared[:, 0]
        f_true = (2.0 * label - 1.0)[:, None] * label_to_f + torch.randn(count, WIDTH, generator=generator)
        g = shared @ to_g + torch.randn(count, WIDTH, generator=generator)
        return Rows(f_true + shared @ to_f, g, label, confounder, f_true)

    return World(rows(train, rho), rows(test, 0.5))


def _directions(count: int, generator: torch.Generator) -> Tensor:
    """`count` random unit vectors [count, 32]."""
    return torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=generator), dim=1)
