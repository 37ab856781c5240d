"""From what a caller gives to the two matrices that are fitted, and back."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ._linalg import accumulation_dtype
from ._norms import ChannelNorm, Moments
from ._presence import Rows
from ._ranks import Ranks


class Features(NamedTuple):
    """One batch in the working precision.

    `f`, `g`: as given. `*_raw` [b, .]: flat (or the means over positions), from which the residual is formed.
    `*_fit` [b, .]: the same, normalised where that is asked for, on which the projection is fitted; the very same
    tensor where nothing was done to it. `moments`: what the batch norms saw. `g_mean` [m]: the mean of `g_raw` over
    the rows that take part, where the features are centred.
    """

    f: Tensor
    g: Tensor
    f_raw: Tensor
    g_raw: Tensor
    f_fit: Tensor
    g_fit: Tensor
    moments: tuple[tuple[ChannelNorm, Moments], ...] = ()
    g_mean: Tensor | None = None

    def restore(self, residual: Tensor, pooled: bool) -> Tensor:
        """The residual [b, n] in the shape of f; if `pooled`, what was subtracted goes to every position."""
        if not pooled:
            return residual.view(self.f.shape)
        explained = self.f_raw - residual
        return self.f - explained.reshape(explained.shape + (1,) * (self.f.dim() - 2))

    def for_fit(self, rows: Rows, centre: bool, ranks: Ranks | None) -> Features:
        """The features as the fit and the residual of this batch take them, in which absent rows are zero.

        `g_raw` then is what W is multiplied with, so that the residual of an absent row is f. Centred, all but
        `f_raw` have the mean 0 over the rows that take part: f keeps its own mean in the residual.
        """
        if rows.present is None and not centre:
            return self
        g_raw, g_fit, f_fit = self.g_raw, self.g_fit, self.f_fit
        same = g_raw is g_fit
        g_mean = None
        if centre:
            g_mean = _mean(g_raw, rows, ranks)
            g_fit = g_fit - (g_mean if same else _mean(g_fit, rows, ranks))
            g_raw = g_fit if same else g_raw - g_mean
            f_fit = f_fit - _mean(f_fit, rows, ranks)
        g_fit, f_fit = rows.of(g_fit), rows.of(f_fit)
        g_raw = g_fit if same else rows.of(g_raw)
        g_mean = None if g_mean is None else g_mean.detach()
        # Not `_replace`, at which the compiler of torch 2.6 breaks the graph.
        return Features(self.f, self.g, self.f_raw, g_raw, f_fit, g_fit, self.moments, g_mean)


def _mean(x: Tensor, rows: Rows, ranks: Ranks | None) -> Tensor:
    """[m], the mean of `x` [b, m] over the rows that take part; 0 where there are none."""
    total = rows.of(x).sum(0, dtype=accumulation_dtype(x.device))
    if ranks is not None:
        total = ranks.sum(total)
    count = rows.count.clamp_min(1) if isinstance(rows.count, Tensor) else max(rows.count, 1)
    return (total / count).to(x.dtype)


class Preparation(NamedTuple):
    """How the features are made ready.

    `norms` None: the inputs are not normalised. `training` decides whether the norms use this batch's statistics.
    `normalized_residual`: the residual is formed from what was normalised.
    """

    norms: tuple[nn.Module, nn.Module] | None
    training: bool
    normalized_residual: bool

    def features(  # a method with a name: the compiler of torch 2.6 calls no instance of a named tuple
        self, given: tuple[Tensor, Tensor], pooled: tuple[Tensor, Tensor], rows: Rows | None, ranks: Ranks | None
    ) -> Features:
        """`given` is (f, g); `pooled` the same, or their means. `rows` None: all take part (evaluation)."""
        f, g = pooled[0].flatten(1), pooled[1].flatten(1)
        if self.norms is None:
            return Features(*given, f, g, f, g)
        moments: list[tuple[ChannelNorm, Moments]] = []
        fitted = []
        for side, (norm, x) in enumerate(zip(self.norms, pooled, strict=True)):
            counted = x if rows is None else rows.of(x)
            if side == 1 or not self.normalized_residual:
                x = counted  # whatever stands in an absent row: no NaN of it gets into a gradient
            if isinstance(norm, ChannelNorm):
                y, seen = norm.normalize(x, self.training, ranks, rows, counted)
                if seen is not None:
                    moments.append((norm, seen))
            else:
                y = cast(Tensor, norm(x))
            fitted.append(y.flatten(1))
        raw = fitted if self.normalized_residual else [f, g]
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
