"""The multiplier lambda of the ridge problem: the root of one monotone scalar equation, a given value, or a scored one.

With G the fitted features of g [b, m], F those of f [b, n], K = G G^T and R = (K + lambda I)^-1 the projection is
W = G^T R F. The two constraints of the paper and of its code read `tr(R^2 T) = 1`, and in the eigenbasis of K (values
s_i, columns u_i)

    sum_i c_i / (s_i + lambda)^2 = 1,      c_i = u_i^T T u_i

with T = K^2 for the smoother (`||K R||_F = 1`, what the published code solves) and T = K F F^T for the paper's
`||W||_F = 1`. In the primal form S = G^T G takes the place of K, and T = (G^T F)(G^T F)^T for the latter.

The left side falls monotonically. Its inverse square root is concave and nearly linear (the secular equation of
trust-region methods, Moré and Sorensen 1983), so a bracket and a few Newton steps from the left find the root to
machine precision from any spectrum, in a fixed number of operations and without asking the device for a value. Where
there is no spectrum at hand, `_inverses` finds it.

Two more need no equation: "fixed", lambda = lam tr(K) / min(b, m), or lam itself, and "gcv", which is in `_gcv`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _gcv
from ._linalg import shifted_inverse, values_at_hand
from .options import Constraint, LambdaGrad

GRID = 128  # points of the bracketing grid; neighbours differ by a factor of about 1.15 over the whole range
NEWTON_STEPS = 3  # quadratic from there, to about 1e-12

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


def _shrink(values: Array, own: Array | None, sizes: Sizes, problem: Problem, given: Array | None) -> _Shrunk:
    """From the eigenvalues of K, in ascending order, to lambda and the factor of each direction.

    `own` are the `u_i^T T u_i`, None where T is K^2 or not needed.
    """
    xp, exponents = _library_of(values)
    limits = problem.limits
    values = xp.where(values > 0.0, values, 0.0)
    largest = values[-1]
    zero_level = sizes.zero * limits.eps * largest
    spanned = values > zero_level
    safe = xp.where(spanned, values, 1.0)
    kept = spanned
    replaced = xp.where(spanned, values, 0.0)
    if limits.threshold > 0.0:
        kept = spanned & (values > limits.threshold**2 * largest)
        replaced = xp.where(kept, values, xp.where(spanned, limits.substitute**2, 0.0))
    floor = xp.where(largest > 0.0, zero_level, 1.0)
    if problem.constraint == "fixed":
        multiplier, active = fixed(values.sum(), floor, sizes, problem, xp)
    elif own is not None and problem.constraint == "gcv":
        energies = xp.where(spanned & (own > 0.0), own / safe, 0.0)
        rest, left = sizes.energy - energies.sum(), sizes.degrees - spanned.sum()
        room = left > 0  # else `rest` is rounding, beside a residual that may be smaller still
        evidence = _gcv.Evidence(energies, spanned, xp.where(room & (rest > 0.0), rest, 0.0), xp.where(room, left, 0))
        multiplier, active = _gcv.by_spectrum(replaced, evidence, floor, exponents, xp)
    else:
        energies = replaced**2 if own is None else xp.where(spanned & (own > 0.0), own * (replaced / safe), 0.0)
        multiplier, active = solve_root(replaced, energies, floor)
    multiplier = multiplier if given is None else given
    if problem.constraint != "gcv" and limits.threshold == 0.0:
        # A lambda above its floor makes weak directions harmless: they count up to the rounding of K.
        spanned = xp.where(active, values > zero_level * below_floor(values), spanned)
        safe = replaced = xp.where(spanned, values, 1.0)
    # W = sum_i v_i sigma~_i / (sigma~_i^2 + lambda) u_i^T F with v_i = G^T u_i / sigma_i
    weights = xp.where(spanned, (replaced / safe) ** 0.5, 0.0) / (replaced + multiplier)
    return _Shrunk(values, kept, weights, multiplier, active)


def below_floor(like: Array) -> float:
    """The part of lambda's floor from which an eigenvalue is more than the rounding of K."""
    return 1e-3 if like.dtype in (torch.float64, np.float64) else 1.0


def fixed(trace: Array, floor: Array, sizes: Sizes, problem: Problem, xp: Any) -> tuple[Array, Array]:
    wanted = problem.fixed(trace, sizes)
    return xp.where(wanted > floor, wanted, floor), wanted > floor


class Limits(NamedTuple):  # a dataclass made in a compiled step is a graph break in torch 2.10 and 2.11
    """What counts as zero. `eps` is the precision of the features that K came from.

    `threshold` and `substitute` are the published sigma_THR and sigma_MIN: singular values sqrt(s_i) not above
    `threshold` times the largest are replaced by `substitute`. A direction in which the features are zero to
    rounding stays out whatever the substitute, since no feature spans it.
    """

    eps: float
    threshold: float = 0.0
    substitute: float = 0.0


FLOAT32 = Limits(torch.finfo(torch.float32).eps)


class Problem(NamedTuple):
    """What of the options decides the fit. `lam`, `relative`: those of "fixed". `centred`: the features have mean 0."""

    constraint: Constraint = "smoother"
    lambda_grad: LambdaGrad = "constant"
    limits: Limits = FLOAT32
    lam: float = 0.0
    relative: bool = True
    centred: bool = False

    @property
    def thresholded(self) -> bool:
        return self.limits.threshold > 0.0

    @property
    def needs_moment(self) -> bool:
        """Whether lambda depends on f."""
        return self.constraint in ("frobenius", "gcv")

    def fixed(self, trace: Array, sizes: Sizes) -> Array:
        """lambda of "fixed", by the trace of K; differentiable."""
        return trace * (self.lam / sizes.shared) if self.relative else trace * 0.0 + self.lam


@dataclass(frozen=True)
class Sizes:
    """The numbers beside K and T. Counts are of the host, or 0-dimensional where it may not know them.

    `rows` samples take part, of `features` features of g; `dual`, `scored` ("gcv") and `centred`: how they are fitted.
    For "gcv" `energy`, ||F||^2, and in the dual form `outer`, F F^T.
    """

    rows: int | Tensor
    features: int
    dual: bool
    scored: bool
    centred: bool
    energy: Any = 0.0
    outer: Tensor | None = None

    @classmethod
    def of(
        cls,
        rows: int | Tensor,
        features: int,
        dual: bool,
        problem: Problem,
        energy: Any = 0.0,
        outer: Tensor | None = None,
    ) -> Sizes:
        """Those of a problem. No batch without rows is moved by, so what is reckoned from 0 of them is of no use."""
        return cls(rows, features, dual, problem.constraint == "gcv", problem.centred, energy, outer)

    @property
    def zero(self) -> int | Tensor:
        """Eigenvalues up to so many times the rounding unit, relative to the largest, count as 0."""
        if self.scored:  # the score may have its minimum at the floor, which then is to be the same in both forms
            return self.shared
        return _at_least_1(self.rows) if self.dual else self.features

    @property
    def shared(self) -> int | Tensor:
        """How many eigenvalues K can have above 0."""
        some = _at_least_1(self.rows)
        return some.clamp_max(self.features) if isinstance(some, Tensor) else min(some, self.features)

    @property
    def degrees(self) -> int | Tensor:
        """Rows that take part, less 1 where they are centred."""
        return self.rows - 1 if self.centred else self.rows

    def on_host(self) -> Sizes:
        """With numbers of the host in place of tensors."""
        energy = self.energy.detach().numpy() if isinstance(self.energy, Tensor) else self.energy
        return replace(self, rows=int(self.rows), energy=energy, outer=None)


def _at_least_1(rows: int | Tensor) -> int | Tensor:
    return rows.clamp_min(1) if isinstance(rows, Tensor) else max(rows, 1)


def gcv_matrices(K: Tensor, T: Tensor, sizes: Sizes) -> _gcv.Matrices:
    """What "gcv" is reckoned from without a spectrum."""
    return _gcv.Matrices(K, T, sizes.energy, sizes.degrees - K.shape[-1], sizes.outer)


def solve_by_eigenvectors(
    K: Tensor, T: Tensor | None, sizes: Sizes, problem: Problem, given: Tensor | None = None
) -> Ridge:
    """Solve for lambda with one symmetric eigendecomposition of K (for devices on which the host waits anyway).

    `T` is needed for "frobenius" and "gcv" only; `given` is used in place of the root.
    """
    finite = torch.isfinite(K.diagonal().sum())  # sums of squares: they show what is not finite anywhere
    at_hand = values_at_hand(K)
    if not (at_hand and finite):  # eigh refuses what is not finite
        K = torch.where(finite, K, torch.eye(K.shape[-1], dtype=K.dtype, device=K.device))
    values, vectors = torch.linalg.eigh(K)
    own = (vectors * (T @ vectors)).sum(0) if problem.needs_moment and T is not None else None
    if at_hand:
        small = _shrink(
            values.numpy(),
            None if own is None else own.numpy(),
            sizes.on_host(),
            problem,
            None if given is None else given.numpy(),
        )
        small = _Shrunk(*(torch.as_tensor(np.asarray(x)) for x in vars(small).values()))
    else:
        small = _shrink(values, own, sizes, problem, given)
    inverse = (vectors / (small.values + small.multiplier)) @ vectors.mT
    in_span = (vectors * small.weights) @ vectors.mT
    spectrum = Spectrum(small.values, vectors, small.kept, small.weights)
    return Ridge(small.multiplier, inverse, in_span, small.active, finite, spectrum)


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
