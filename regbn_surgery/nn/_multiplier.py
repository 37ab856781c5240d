"""The multiplier lambda of the ridge problem, as the root of one monotone scalar equation.

With G the fitted features of g [b, m], F those of f [b, n], K = G G^T and R = (K + lambda I)^-1 the projection is
W = G^T R F. Both constraints of RegBN read `tr(R^2 T) = 1`, and in the eigenbasis of K (values s_i, columns u_i)

    sum_i c_i / (s_i + lambda)^2 = 1,      c_i = u_i^T T u_i

with T = K^2 for the smoother (`||K R||_F = 1`, what the published code solves) and T = K F F^T for the paper's
`||W||_F = 1`. In the primal form S = G^T G takes the place of K, and T = (G^T F)(G^T F)^T for the latter.

The left side falls monotonically. Its inverse square root is concave and nearly linear (the secular equation of
trust-region methods, Moré and Sorensen 1983), so a bracket and a few Newton steps from the left find the root to
machine precision from any spectrum, in a fixed number of operations and without asking the device for a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._linalg import shifted_inverse, values_at_hand
from .options import Constraint

GRID = 128  # points of the bracketing grid; neighbours differ by a factor of about 1.15 over the whole range
NEWTON_STEPS = 3  # quadratic from there, to about 1e-12
INVERSE_NEWTON_STEPS = 5  # from a bracket of a factor of 1.4
COARSE_GRID = 8  # per round of two, where each point costs a matrix inverse

Array = Any  # a torch.Tensor or a numpy.ndarray
_EXPONENTS = np.linspace(0.0, 1.0, GRID)


@dataclass(frozen=True)
class Ridge:
    """A solved multiplier, without gradient.

    `multiplier` is 0-dimensional. `inverse` is `(K + lambda I)^-1`; `spanned` is the same with the numerical null
    space of K (or what `sigma_THR` cut off) taken out, for products in lower precision, whose rounding noise in
    the null space a small lambda would lift. `active` says whether the constraint binds; where it does not, lambda
    is at its floor. `finite` is false where K is not; the rest is then meaningless.
    """

    multiplier: Tensor
    inverse: Tensor
    spanned: Tensor
    active: Tensor
    finite: Tensor
    spectrum: Spectrum | None = None


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and -vectors of K, and the factor by which each enters the projection in place of 1/(s + lambda)."""

    values: Tensor
    vectors: Tensor
    kept: Tensor  # bool
    weights: Tensor


def left_side(values: Array, energies: Array, multiplier: Array) -> Array:
    """`sum_i c_i / (s_i + lambda)^2`; the last axis is summed, `multiplier` > 0 broadcasts against it."""
    return (energies / (values + multiplier) ** 2).sum(-1)


def solve_root(values: Array, energies: Array, floor: Array) -> tuple[Array, Array]:
    """The root of `sum_i c_i / (s_i + lambda)^2 = 1` over lambda >= floor > 0, and whether it lies above the floor.

    `values` and `energies` are [k] and not negative, of torch or of numpy (where an operation on k numbers costs a
    fraction); the steps are the same. Where the left side at the floor is at most 1 the floor is returned.
    """
    xp, exponents = _library_of(values)
    top = xp.maximum(xp.sqrt(energies.sum()), floor)  # the left side is at most 1 here
    grid = floor * (top / floor) ** exponents
    above = left_side(values, energies, grid[:, None]) > 1.0
    low, high = xp.where(above, grid, floor).max(), xp.where(above, top, grid).min()
    root = low
    for _ in range(NEWTON_STEPS):
        inverse = 1.0 / (values + root)
        scaled = energies * inverse
        value = scaled.dot(inverse)
        # Newton on value^(-1/2) - 1, whose derivative is value^(-3/2) * sum_i c_i / (s_i + lambda)^3
        root = root + value * (value**0.5 - 1.0) / ((scaled * inverse).dot(inverse) + 1e-300)
    root = xp.minimum(xp.maximum(root, low), high)
    active = above.any()
    return xp.where(active, root, floor), active


def _library_of(values: Array) -> tuple[Any, Array]:
    """numpy or torch, and the grid's exponents from 0 to 1 in kind."""
    if isinstance(values, Tensor):
        return torch, torch.linspace(0.0, 1.0, GRID, dtype=values.dtype, device=values.device)
    return np, _EXPONENTS


@dataclass(frozen=True)
class _Shrunk:
    """What the spectrum of K says, in torch or in numpy: see `Ridge` and `Spectrum`."""

    values: Array
    kept: Array
    weights: Array
    multiplier: Array
    active: Array


def _shrink(values: Array, own: Array | None, given: Array | None, limits: Limits) -> _Shrunk:
    """From the eigenvalues of K, in ascending order, to lambda and the factor of each direction.

    `own` are the `u_i^T T u_i`, None for the smoother, whose T is K^2.
    """
    xp, _ = _library_of(values)
    values = xp.where(values > 0.0, values, 0.0)
    largest = values[-1]
    zero_level = len(values) * limits.eps * largest
    spanned = values > zero_level
    safe = xp.where(spanned, values, 1.0)
    kept = spanned
    replaced = xp.where(spanned, values, 0.0)
    if limits.threshold > 0.0:
        kept = spanned & (values > limits.threshold**2 * largest)
        replaced = xp.where(kept, values, xp.where(spanned, limits.substitute**2, 0.0))
    energies = replaced**2 if own is None else xp.where(spanned & (own > 0.0), own * (replaced / safe), 0.0)
    floor = xp.where(largest > 0.0, zero_level, 1.0)
    multiplier, active = solve_root(replaced, energies, floor)
    multiplier = multiplier if given is None else given
    # W = sum_i v_i sigma~_i / (sigma~_i^2 + lambda) u_i^T F with v_i = G^T u_i / sigma_i
    weights = xp.where(spanned, (replaced / safe) ** 0.5, 0.0) / (replaced + multiplier)
    return _Shrunk(values, kept, weights, multiplier, active)


@dataclass(frozen=True)
class Limits:
    """What counts as zero. `eps` is the precision of the features that K came from.

    `threshold` and `substitute` are the published sigma_THR and sigma_MIN: singular values sqrt(s_i) not above
    `threshold` times the largest are replaced by `substitute`. A direction in which the features are zero to
    rounding stays out whatever the substitute, since no feature spans it.
    """

    eps: float
    threshold: float = 0.0
    substitute: float = 0.0


FLOAT32 = Limits(torch.finfo(torch.float32).eps)


def solve_by_eigenvectors(
    K: Tensor, T: Tensor | None, constraint: Constraint, limits: Limits, given: Tensor | None = None
) -> Ridge:
    """Solve for lambda with one symmetric eigendecomposition of K (for devices on which the host waits anyway).

    `T` is needed for the constraint "frobenius" only; `given` is used in place of the root.
    """
    finite = torch.isfinite(K.diagonal().sum())  # sums of squares: they show what is not finite anywhere
    at_hand = values_at_hand(K)
    if not (at_hand and finite):  # eigh refuses what is not finite
        K = torch.where(finite, K, torch.eye(K.shape[-1], dtype=K.dtype, device=K.device))
    values, vectors = torch.linalg.eigh(K)
    own = None if constraint == "smoother" or T is None else (vectors * (T @ vectors)).sum(0)
    if at_hand:
        small = _shrink(
            values.numpy(), None if own is None else own.numpy(), None if given is None else given.numpy(), limits
        )
        small = _Shrunk(*(torch.as_tensor(x) for x in vars(small).values()))
    else:
        small = _shrink(values, own, given, limits)
    inverse = (vectors / (small.values + small.multiplier)) @ vectors.mT
    in_span = (vectors * small.weights) @ vectors.mT
    spectrum = Spectrum(small.values, vectors, small.kept, small.weights)
    return Ridge(small.multiplier, inverse, in_span, small.active, finite, spectrum)


def solve_by_inverses(
    K: Tensor, T: Tensor | None, constraint: Constraint, limits: Limits, given: Tensor | None = None
) -> Ridge:
    """Solve for lambda with matrix inverses alone, for devices on which a decomposition would make the host wait."""
    largest = _largest_eigenvalue(K)
    floor = torch.where(largest > 0, K.shape[-1] * limits.eps * largest, 1.0)
    span = _span(K, floor)
    T = K @ K if constraint == "smoother" or T is None else span @ T @ span  # K F F^T is not symmetric

    def spanned(shift: Tensor) -> Tensor:
        """(K + shift I)^-1 in the span of K alone: elsewhere T is rounding, which a small shift would lift."""
        return shifted_inverse(K, shift) @ span

    top = torch.maximum(T.diagonal().sum().clamp_min(0.0).sqrt(), floor)
    low, high = floor, top
    exponents = torch.linspace(0.0, 1.0, COARSE_GRID, dtype=K.dtype, device=K.device)
    active = torch.zeros((), dtype=torch.bool, device=K.device)
    for _ in range(2):
        grid = low * (high / low) ** exponents
        inverses = spanned(grid)
        reached = ((inverses @ inverses) * T.mT).sum((-2, -1)).gt(1.0).sum()
        low = grid.gather(0, (reached - 1).clamp(0, COARSE_GRID - 1)[None])[0]
        high = grid.gather(0, reached.clamp(0, COARSE_GRID - 1)[None])[0]
        active = active | (reached > 0)
    root = low
    for _ in range(INVERSE_NEWTON_STEPS):
        inverse = spanned(root)
        weighted = inverse @ T
        value = (weighted * inverse.mT).sum()
        slope = ((inverse @ weighted) * inverse.mT).sum()
        step = value * (value.sqrt() - 1.0) / slope
        root = torch.minimum(torch.maximum(root + step, low), high)
    multiplier = torch.where(active, root, floor) if given is None else given
    finite = torch.isfinite(K.diagonal().sum())
    return Ridge(multiplier, shifted_inverse(K, multiplier), spanned(multiplier), active, finite)


def _span(K: Tensor, floor: Tensor) -> Tensor:
    """The projector onto the eigenvectors of K above `floor`, to 1e-5; of those a thousand times lower little is left.

    K (K + mu I)^-1 with mu far below the floor and far above the noise of a float64 K is near to it; a step of
    McWeeny's purification, 3 P^2 - 2 P^3, squares what is missing.
    """
    near = K @ shifted_inverse(K, floor * 1e-3)
    square = near @ near
    return 3.0 * square - 2.0 * (square @ near)


def _largest_eigenvalue(K: Tensor) -> Tensor:
    """An upper bound on the largest eigenvalue of K >= 0, at most k^(1/64) times it, by squaring five times."""
    scale = K.diagonal().sum()
    power = K / torch.where(scale > 0, scale, 1.0)
    log_norm = torch.zeros((), dtype=K.dtype, device=K.device)
    for _ in range(5):
        power = power @ power
        norm = torch.linalg.vector_norm(power)
        power = power / torch.where(norm > 0, norm, 1.0)
        log_norm = 2.0 * log_norm + norm.clamp_min(torch.finfo(K.dtype).tiny).log()
    return torch.where(scale > 0, scale * (log_norm / 32.0).exp(), 0.0)


def attach_gradient(multiplier: Tensor, K: Tensor, T: Tensor, active: Tensor) -> Tensor:
    """`multiplier` with the derivative of the root with respect to K and T, correct to third order.

    Each differentiable Newton step from the converged root leaves its value and doubles the order to which its
    derivatives are right.
    """
    root = multiplier
    for _ in range(2):
        inverse = shifted_inverse(K, root)
        weighted = inverse @ T
        value = (weighted * inverse.mT).sum()
        slope = -2.0 * ((inverse @ weighted) * inverse.mT).sum()
        root = root - (value - 1.0) / torch.where(active, slope, -1.0)
    return torch.where(active, root, multiplier)
