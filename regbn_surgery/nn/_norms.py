"""The norms before the fit and after the subtraction, with the parameter and buffer names of torch's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._linalg import accumulation_dtype
from ._ranks import Ranks


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance [C] of a batch, and how many values per channel they were taken from."""

    mean: Tensor
    var: Tensor
    count: Tensor | float


def _like(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


class SampleNorm(nn.LayerNorm):
    """LayerNorm over (C, *spatial) of each sample, in the precision of its input whatever that of its weights."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _like(self.weight, input), _like(self.bias, input)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class PositionNorm(nn.LayerNorm):
    """LayerNorm over C at every position of [B, C, *positions]."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _like(self.weight, input), _like(self.bias, input)
        last = input.movedim(1, -1)
        return F.layer_norm(last, self.normalized_shape, weight, bias, self.eps).movedim(-1, 1)


class ChannelNorm(nn.Module):
    """BatchNorm over (batch, *spatial) of each channel of [B, C, *spatial], for any number of spatial axes.

    Differs from `nn.BatchNorm2d` in one thing: a batch that is not finite leaves the running statistics alone.
    Those are used in evaluation mode only, and by RegBN only where the residual is formed from normalised inputs.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, input: Tensor, training: bool | None = None) -> Tensor:
        """`training` overrides the module's own mode; statistics are not updated here (see `track`)."""
        return self.normalize(input, training)[0]

    def normalize(
        self, x: Tensor, training: bool | None = None, ranks: Ranks | None = None
    ) -> tuple[Tensor, Moments | None]:
        """The normalised x, and in training the moments that it was normalised with (of all `ranks` together)."""
        weight, bias = _like(self.weight, x), _like(self.bias, x)
        if not (self.training if training is None else training):
            mean, var = self.running_mean.to(x.dtype), self.running_var.to(x.dtype)
            return F.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps), None
        if ranks is not None:
            return self._normalize_joined(x, weight, bias, ranks)
        y, mean, inverse_std = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, self.eps)
        var = inverse_std.detach().square().reciprocal() - self.eps
        return y, Moments(mean.detach(), var, float(x.numel() // x.shape[1]))

    def _normalize_joined(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, ranks: Ranks
    ) -> tuple[Tensor, Moments]:
        flat = x.transpose(0, 1).flatten(1)
        wide = flat.to(accumulation_dtype(x.device))
        count = wide.new_full((1,), float(flat.shape[1]))
        sums = ranks.sum(torch.cat([wide.sum(1), wide.square().sum(1), count]))
        total, squares, count = sums[: len(flat)], sums[len(flat) : -1], sums[-1].detach()
        mean = total / count
        var = (squares / count - mean.square()).clamp_min(0.0)
        scale = (var + self.eps).rsqrt()
        if weight is not None:
            scale = scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        shape = (1, -1) + (1,) * (x.dim() - 2)
        y = x * scale.to(x.dtype).view(shape) + shift.to(x.dtype).view(shape)
        return y, Moments(mean.detach(), var.detach(), count)

    @torch.no_grad()
    def track(self, seen: Moments, finite: Tensor) -> None:
        """Move the running statistics towards those of a batch, if `finite`."""
        count = seen.count
        unbiased = seen.var * (count / (count - 1.0)) if not isinstance(count, float) or count > 1 else seen.var
        for running, new in ((self.running_mean, seen.mean), (self.running_var, unbiased)):
            running.add_(torch.where(finite, self.momentum * (new.to(running.dtype) - running), 0.0))
        self.num_batches_tracked.add_(finite)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}"


def input_norm(channels: int, layer_dim: Sequence[int], affine: bool) -> nn.Module:
    """LayerNorm over (C, *spatial) for zero or one spatial axis, BatchNorm over C for more (as published)."""
    if len(layer_dim) <= 1:
        return SampleNorm((channels, *layer_dim), elementwise_affine=affine)
    return ChannelNorm(channels, affine=affine)


def output_norm(channels: int, layer_dim: Sequence[int], affine: bool, by_position: bool) -> nn.Module:
    """LayerNorm over (C, *spatial), or over C alone at every position."""
    if by_position:
        return PositionNorm(channels, elementwise_affine=affine)
    return SampleNorm((channels, *layer_dim), elementwise_affine=affine)
