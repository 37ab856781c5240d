"""How dependent two feature batches are: four numbers to show a user before and after RegBN.

Written here in a few lines each rather than taken from a library: the one kept library for distance correlation
(`dcor`) brings a compiler with it; the tests compare with it where it is installed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ._errors import RegBNShapeError

MINIMUM = 8  # samples: fewer tell nothing once some are held out
FOLDS = 5
NOISE_DEVIATIONS = 4.0  # standard deviations of a correlation of independent samples that count as noise
ROUNDING = 1e-12  # what of a centred matrix is no more than this share of the whole is rounding
#: Ridge strengths tried, as shares of the mean eigenvalue of the Gram matrix.
RIDGES = tuple(10.0**power for power in range(-4, 5))


@dataclass(frozen=True)
class Dependence:
    """How much of f goes with g. The first three are about 0 for independent features, and 1 for f = g.

    explained_variance: the share of the variance of f, over all its features, that a ridge regression on g predicts
        on held-out samples (5 folds; the strength by leave-one-out within the training folds). Linear, f from g.
        Below 0 where the regression does worse than the mean.
    linear_cka: debiased linear centred kernel alignment (Kornblith et al. 2019, with the unbiased HSIC of Song et
        al. 2012, since the plain one nears 1 for independent features once there are more of them than samples).
        Linear, symmetric.
    distance_correlation: bias-corrected distance correlation (Székely and Rizzo 2014). Sees nonlinear dependence
        too; symmetric.
    shared_directions: how many pairs of directions of f and g, found on one half of the samples, go together on the
        other half above the noise level (canonical correlations, both halves in turn).
    samples: how many samples they come from. With few, take differences below about 0.1 as noise.
    """

    explained_variance: float
    linear_cka: float
    distance_correlation: float
    samples: int
    shared_directions: int = 0

    def __str__(self) -> str:
        return (
            f"g explains {self.explained_variance:.1%} of the variance of f (held out), linear CKA "
            f"{self.linear_cka:.3f}, distance correlation {self.distance_correlation:.3f}, shared directions "
            f"{self.shared_directions} ({self.samples} samples)"
        )


@torch.no_grad()
def dependence(f: Tensor, g: Tensor, *, seed: int = 0) -> Dependence:
    """Measure the dependence between `f` [B, ...] and `g` [B, ...], flattened to [B, n] and [B, m].

    `seed` orders the samples into folds. Cost: a few B x B decompositions. Raises `RegBNShapeError` for fewer than
    8 samples, batches that differ, or values that are not finite.
    """
    if f.shape[0] != g.shape[0] or f.shape[0] < MINIMUM:
        raise RegBNShapeError(
            f"dependence needs at least {MINIMUM} samples, and as many of f as of g; found {f.shape[0]} and "
            f"{g.shape[0]}"
        )
    F, G = (x.detach().flatten(1).double().cpu() for x in (f, g))
    for name, x in (("f", F), ("g", G)):
        if not torch.isfinite(x).all():
            raise RegBNShapeError(f"dependence needs finite features; {name} contains NaN or infinite values")
    figures = explained_variance(F, G, seed=seed), linear_cka(F, G), distance_correlation(F, G)
    return Dependence(*figures, F.shape[0], shared_directions(F, G, seed=seed))


def explained_variance(F: Tensor, G: Tensor, *, seed: int = 0) -> float:
    """Held-out R^2 of ridge regression of `F` [B, n] on `G` [B, m], summed over features and folds."""
    order = torch.randperm(len(F), generator=torch.Generator().manual_seed(seed))
    error = total = 0.0
    for fold in range(FOLDS):
        held = torch.zeros(len(F), dtype=torch.bool)
        held[order[fold::FOLDS]] = True
        center_f, center_g = F[~held].mean(0), G[~held].mean(0)
        scale = G[~held].std(0)
        scale = torch.where(scale > 0, scale, 1.0)
        target, source = F[~held] - center_f, (G[~held] - center_g) / scale
        predicted = _ridge(source, target, (G[held] - center_g) / scale)
        truth = F[held] - center_f
        error += float((truth - predicted).square().sum())
        total += float(truth.square().sum())
    return 1.0 - error / total if total > 0 else 0.0


def _ridge(source: Tensor, target: Tensor, new: Tensor) -> Tensor:
    """Ridge predictions for `new`, with the strength whose leave-one-out error on the given samples is least."""
    s, U = torch.linalg.eigh(source @ source.mT)
    s = s.clamp_min(0.0)
    level = s.mean()
    if level == 0:
        return new.new_zeros((len(new), target.shape[1]))
    rotated = U.mT @ target
    best: tuple[float, Tensor] | None = None
    for ridge in RIDGES:
        dual = U @ (rotated / (s + ridge * level)[:, None])
        leverage = (U.square() / (s + ridge * level)).sum(1)  # diagonal of the inverse
        left_out = float((dual / leverage[:, None]).square().sum())
        if best is None or left_out < best[0]:
            best = (left_out, dual)
    assert best is not None
    return new @ (source.mT @ best[1])


def shared_directions(F: Tensor, G: Tensor, *, seed: int = 0) -> int:
    """The number of canonical correlations of `F` [B, n] and `G` [B, m] above their noise level.

    Directions are found on one half of the samples, among the leading principal components of each side, as many as a
    fifth of that half; what counts is how they go together on the other half. Both halves have their turn.
    """
    order = torch.randperm(len(F), generator=torch.Generator().manual_seed(seed))
    halves = order[::2], order[1::2]
    correlations = [_canonical(F, G, a, b) for a, b in (halves, halves[::-1])]
    size = min(len(found) for found in correlations)
    mean = (correlations[0][:size] + correlations[1][:size]) / 2
    return int((mean > NOISE_DEVIATIONS / math.sqrt(len(F))).sum())


def _canonical(F: Tensor, G: Tensor, fit: Tensor, held: Tensor) -> Tensor:
    """Correlations over `held` of the canonical directions found over `fit`."""
    sides = []
    for x in (F, G):
        center = x[fit].mean(0)
        U, s, Vt = torch.linalg.svd(x[fit] - center, full_matrices=False)
        keep = (s > 1e-6 * s[0]) & (torch.arange(len(s)) < max(1, len(fit) // 5))
        sides.append((U[:, keep], (x[held] - center) @ (Vt[keep].mT / s[keep])))
    (U_f, new_f), (U_g, new_g) = sides
    left, _, right = torch.linalg.svd(U_f.mT @ U_g, full_matrices=False)
    a, b = new_f @ left, new_g @ right.mT
    a, b = a - a.mean(0), b - b.mean(0)
    scale = a.norm(dim=0) * b.norm(dim=0)
    return torch.where(scale > 0, (a * b).sum(0) / torch.where(scale > 0, scale, 1.0), 0.0)


def linear_cka(F: Tensor, G: Tensor) -> float:
    """Debiased linear CKA of `F` [B, n] and `G` [B, m]."""
    K, L = _u_centered(F @ F.mT), _u_centered(G @ G.mT)
    return _correlation(K, L)


def distance_correlation(F: Tensor, G: Tensor) -> float:
    """Bias-corrected squared distance correlation of `F` [B, n] and `G` [B, m]."""
    return _correlation(_u_centered(torch.cdist(F, F)), _u_centered(torch.cdist(G, G)))


def _u_centered(matrix: Tensor) -> Tensor:
    """The U-centred [B, B] matrix: zero diagonal, and products whose expectation is 0 for independent samples."""
    size = len(matrix)
    raw_size = matrix.norm()
    matrix = matrix - torch.diag(matrix.diagonal())
    rows = matrix.sum(1)
    centered = matrix - rows[:, None] / (size - 2) - rows / (size - 2) + rows.sum() / ((size - 1) * (size - 2))
    centered = centered - torch.diag(centered.diagonal())
    return torch.where(centered.norm() > ROUNDING * raw_size, centered, 0.0)  # else all samples are alike


def _correlation(K: Tensor, L: Tensor) -> float:
    product, first, second = (K * L).sum(), K.square().sum(), L.square().sum()
    scale = (first * second).sqrt()
    return float(product / scale) if scale > 0 else 0.0
