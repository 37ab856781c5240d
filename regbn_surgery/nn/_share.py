"""How far the running projection moves towards that of a batch: a share in the manner of Adam's step."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor

from .options import RegBNOptions

Count = TypeVar("Count", int, Tensor)
Number = TypeVar("Number", float, Tensor)


def exponent_of(options: RegBNOptions, n_epoch: int | None, count: Count) -> int | Count:
    """t in the correction of the moments, from 1: the epoch where it is told or its length is, else training step
    `count`."""
    if n_epoch is not None:
        return n_epoch + 1
    steps = options.steps_per_epoch
    return count if steps is None else (count - 1) // steps + 1


def adaptive_share(
    options: RegBNOptions, mean: float, square: float, change: float, exponent: int, limit: float = math.inf
) -> tuple[float, float, float]:
    """The two moments of the change's size with `change` taken in, and the share of the batch's projection.

    `share = momentum * (mean / (1 - beta1^t)) / (sqrt(square / (1 - beta2^t)) + 1e-8)`, t the exponent. Where the mean
    square is beyond `limit`, the largest number that can be kept, the share is `momentum`.
    """
    mean = options.beta1 * mean + (1.0 - options.beta1) * change
    square = options.beta2 * square + (1.0 - options.beta2) * change * change
    corrected = (square / (1.0 - options.beta2**exponent)) ** 0.5
    share = options.momentum * (mean / (1.0 - options.beta1**exponent)) / (corrected + 1e-8)
    return (mean, square, share) if square < limit else (mean, limit, options.momentum)


def corrected_share(zero_weight: Number, share: Number) -> tuple[Number, Number]:
    """The weight that the zero start has after a step by `share`, and the share that takes it out of W.

    With `p` the product of all `1 - share`, W / (1 - p) is the average of the batches alone. It moves by
    `share / (1 - p)`: the first step takes the batch's projection whole.
    """
    left: Any = zero_weight * (1.0 - share)
    arrived: Any = 1.0 - left
    if isinstance(arrived, Tensor):
        return left, torch.where(arrived > 0.0, share / torch.where(arrived > 0.0, arrived, 1.0), 0.0)  # type: ignore[return-value]
    return left, share / arrived if arrived > 0.0 else share
