"""The norms before the fit and after the subtraction, with the parameter and buffer names of torch's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._compilers import exporting
from ._linalg import accumulation_dtype, power_of_2_below, values_at_hand
from ._no_gradient import without_gradient
from ._presence import Rows
from ._ranks import Ranks
from ._readers import is_read_by_autograd


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance [C] of a batch, and how many values per channel they were taken from."""

    mean: Tensor
    var: Tensor
    count: Tensor | float


def _like(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


def _layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """`F.layer_norm`, with the right result for values whose squares are beyond their precision, too."""
    if values_at_hand(x):
        y, _, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
        if x.numel() == 0 or _least(scale.detach()) > 0 or not bool(torch.isfinite(x.detach()).all()):
            return y
    elif exporting():
        return F.layer_norm(x, shape, weight, bias, eps)
    return F.layer_norm(_within_range(x), shape, weight, bias, eps)


def _least(values: Tensor) -> float:
    """By numpy, which starts in a fraction of the time, where it has the type; NaN, which is not > 0, where one is."""
    return float(values.min() if values.dtype == torch.bfloat16 else values.numpy().min())


def _within_range(x: Tensor) -> Tensor:
    """`x` [b, ...] divided by a power of two for each sample where it is large, by far not so much that eps counts."""
    size = torch.linalg.vector_norm(x.detach(), math.inf, dim=tuple(range(1, x.dim())), keepdim=True)
    largest = 2.0 ** (math.log2(torch.finfo(x.dtype).max) // 4)
    return x / power_of_2_below((size * (1.0 / largest)).clamp_min(1.0))


class SampleNorm(nn.LayerNorm):
    """LayerNorm over (C, *spatial) of each sample, in the precision of its input whatever that of its weights."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _like(self.weight, input), _like(self.bias, input)
        return _layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class PositionNorm(nn.LayerNorm):
    """LayerNorm over C at every position of [B, C, *positions]."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _like(self.weight, input), _like(self.bias, input)
        last = input.movedim(1, -1)
        return _layer_norm(last, self.normalized_shape, weight, bias, self.eps).movedim(-1, 1)


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
        self,
        x: Tensor,
        training: bool | None = None,
        ranks: Ranks | None = None,
        rows: Rows | None = None,
        counted: Tensor | None = None,
    ) -> tuple[Tensor, Moments | None]:
        """The normalised x, and in training the moments that it was normalised with (of all `ranks` together).

        With `rows` the moments are those of the rows that take part; the others, which are zero in `counted` (x
        otherwise), are normalised with them, too.
        """
        weight, bias = _like(self.weight, x), _like(self.bias, x)
        if not (self.training if training is None else training):
            mean, var = self.running_mean.to(x.dtype), self.running_var.to(x.dtype)
            if is_read_by_autograd(x):  # a later step changes them in place
                mean, var = mean.clone(), var.clone()
            return F.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps), None
        counted = x if counted is None else counted
        if ranks is not None or (rows is not None and rows.present is not None):
            return self._normalize_over(x, counted, ranks, rows)
        y, mean, inverse_std = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, self.eps)
        if values_at_hand(x) and not bool((inverse_std.detach() > 0).all()):  # squares beyond the precision of x
            return self._normalize_over(x, counted, ranks, rows)
        var = inverse_std.detach().square().reciprocal() - self.eps
        return y, Moments(mean.detach(), var, float(x.numel() // x.shape[1]))

    def _normalize_over(
        self, x: Tensor, counted: Tensor, ranks: Ranks | None, rows: Rows | None
    ) -> tuple[Tensor, Moments]:
        """Over the rows that take part, of all ranks."""
        wide = counted.to(accumulation_dtype(x.device))
        axes = [axis for axis in range(x.dim()) if axis != 1]
        total, squares = wide.sum(axes), wide.square().sum(axes)
        count: Tensor | float = len(x) if rows is None else rows.count
        if ranks is not None:
            own: Tensor | int = len(x) if rows is None or rows.present is None else rows.present.sum()
            sums = ranks.sum(torch.cat([total, squares, total.new_ones(1) * own]))
            total, squares, count = sums[: len(total)], sums[len(total) : -1], sums[-1].detach()
        values = math.prod(x.shape[2:])  # of a channel in a row
        count = count.clamp_min(1) * values if isinstance(count, Tensor) else float(max(count, 1) * values)
        mean = total / count
        var = (squares / count - mean * mean).relu()
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shape = (1, -1) + (1,) * (x.dim() - 2)
        given = wide if x is counted else x.to(wide.dtype)
        y = (given - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        return y.to(x.dtype), Moments(mean.detach(), var.detach(), count)

    @without_gradient
    def track(self, seen: Moments, finite: Tensor, share: Tensor | None = None) -> None:
        """Move the running statistics towards those of a batch, if `finite`: by `momentum`, or by `share`, which counts
        for no step of training."""
        count = seen.count
        unbiased = seen.var * (count / (count - 1.0)) if not isinstance(count, float) or count > 1 else seen.var
        counted = share is None
        share = finite.to(self.running_mean.dtype) * (self.momentum if share is None else share)
        for running, new in ((self.running_mean, seen.mean), (self.running_var, unbiased)):
            towards = new.to(running.dtype) - running
            # A variance may be beyond float32 where the batch is not.
            running.add_(towards.nan_to_num(0.0, 0.0, 0.0) * share)
        if counted:
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
