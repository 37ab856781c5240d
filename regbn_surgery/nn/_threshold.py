"""The inverse of K with `sigma_THR` and `sigma_MIN` applied, and its derivative by divided differences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ._multiplier import Spectrum


def _divided_differences(spectrum: Spectrum, multiplier: Tensor) -> Tensor:
    """`(rho_i - rho_j) / (s_i - s_j)`, and `rho'(s)` where the two eigenvalues are treated alike."""
    values, weights, kept = spectrum.values, spectrum.weights, spectrum.kept
    gap = values[:, None] - values[None, :]
    across = (weights[:, None] - weights[None, :]) / torch.where(gap == 0, 1.0, gap)
    both_kept = kept[:, None] & kept[None, :]
    inverse = 1.0 / (values + multiplier)
    within_kept = -inverse[:, None] * inverse[None, :]
    # replaced values have rho = c / sqrt(s), so the difference quotient is -rho_i rho_j / (rho_i s_i + rho_j s_j) ...
    root = values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()
    share = weights * root  # ... with c = rho sqrt(s), the same for all of them
    within_replaced = -share[:, None] / (root[:, None] * root[None, :] * (root[:, None] + root[None, :]))
    replaced = (weights > 0) & ~kept
    both_replaced = replaced[:, None] & replaced[None, :]
    return torch.where(
        both_kept, within_kept, torch.where(both_replaced, within_replaced, torch.where(gap == 0, 0.0, across))
    )


class _ThresholdedInverse(Function):
    @staticmethod
    def forward(K: Tensor, inverse: Tensor, vectors: Tensor, differences: Tensor) -> Tensor:
        return inverse.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _, _, vectors, differences = inputs
        ctx.save_for_backward(vectors, differences)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        vectors, differences = ctx.saved_tensors
        rotated = vectors.mT @ (0.5 * (grad + grad.mT)) @ vectors
        return vectors @ (differences * rotated) @ vectors.mT, None, None, None


def thresholded_inverse(K: Tensor, inverse: Tensor, spectrum: Spectrum, multiplier: Tensor) -> Tensor:
    """`inverse` (from `solve_by_eigenvectors`) with its derivative with respect to K; once differentiable.

    The set of replaced singular values is held fixed, as is lambda. The formula is that of Daleckii and Krein.
    """
    differences = _divided_differences(spectrum, multiplier)
    return _ThresholdedInverse.apply(K, inverse, spectrum.vectors, differences)  # type: ignore[no-untyped-call, no-any-return]
