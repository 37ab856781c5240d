"""From what a caller gives to the two matrices that are fitted, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ._norms import ChannelNorm, Moments
from ._ranks import Ranks


@dataclass(frozen=True)
class Features:
    """One batch in the working precision.

    `f`, `g`: as given. `*_raw` [b, .]: flat (or the means over positions), from which the residual is formed.
    `*_fit` [b, .]: the same, normalised where that is asked for, on which the projection is fitted; the very same
    tensor where nothing was done to it. `moments`: what the batch norms saw.
    """

    f: Tensor
    g: Tensor
    f_raw: Tensor
    g_raw: Tensor
    f_fit: Tensor
    g_fit: Tensor
    moments: tuple[tuple[ChannelNorm, Moments], ...] = ()

    def restore(self, residual: Tensor, pooled: bool) -> Tensor:
        """The residual [b, n] in the shape of f; if `pooled`, what was subtracted goes to every position."""
        if not pooled:
            return residual.view(self.f.shape)
        explained = self.f_raw - residual
        return self.f - explained.reshape(explained.shape + (1,) * (self.f.dim() - 2))


def prepare(
    given: tuple[Tensor, Tensor],
    pooled: tuple[Tensor, Tensor],
    norms: tuple[nn.Module, nn.Module] | None,
    training: bool,
    normalized_residual: bool,
    ranks: Ranks | None,
) -> Features:
    """`given` is (f, g); `pooled` the same, or their means; `norms` None where the inputs are not normalised."""
    f, g = pooled[0].flatten(1), pooled[1].flatten(1)
    if norms is None:
        return Features(*given, f, g, f, g)
    moments: list[tuple[ChannelNorm, Moments]] = []
    fitted = []
    for norm, x in zip(norms, pooled, strict=True):
        if isinstance(norm, ChannelNorm):
            y, seen = norm.normalize(x, training, ranks)
            if seen is not None:
                moments.append((norm, seen))
        else:
            y = cast(Tensor, norm(x))
        fitted.append(y.flatten(1))
    raw = fitted if normalized_residual else [f, g]
    return Features(*given, raw[0], raw[1], fitted[0], fitted[1], tuple(moments))


def mean_over_positions(x: Tensor, mask: Tensor | None) -> Tensor:
    """[B, C, *positions] -> [B, C], over the positions that the mask keeps (0 where it keeps none)."""
    if x.dim() == 2:
        return x if mask is None else torch.where(mask[:, None], x, 0.0)
    flat = x.flatten(2)
    if mask is None:
        return flat.mean(-1)
    keep = mask.flatten(1)[:, None, :]
    return torch.where(keep, flat, 0.0).sum(-1) / keep.sum(-1).clamp_min(1)
