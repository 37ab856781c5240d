"""lambda by generalised cross-validation: the fit that would predict left-out rows best (Golub, Heath, Wahba 1979).

With S = K R the matrix that maps F to its fit, e_i = ||u_i^T F||^2 and d the rows that take part (less one where they
are centred, since the mean has been fitted to them),

    score(lambda) = ||F - S F||^2 / (d - tr S)^2 = (sum_i (lambda / (s_i + lambda))^2 e_i + rest) / (d - tr S)^2,

up to a constant. It may have several minima: a grid over all lambda that matter finds the lowest, a finer grid and
Newton steps on its derivative find that one exactly. Of scores that are equal to rounding the largest lambda counts,
so that nothing is removed where nothing is known. All of it in a fixed number of operations, the same every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._linalg import shifted, shifted_inverse, solved

Array = Any  # a torch.Tensor or a numpy.ndarray
TOP = 1e4  # lambda up to so many times the largest eigenvalue: beyond it W is nearly 0
TIE = 1e-9  # relative difference of scores that counts as none
ROUNDS = 2  # grids after each other
NEWTON_STEPS = 4
RANGE = 26.0  # of the logarithm of lambda, from its floor to TOP
CLOSE = 0.03  # of the same, near enough for Newton steps
#: Points of a grid where each costs a matrix inverse: of the first one at least, of others at least, and of all at
#: most; between these as many as AT_ONCE elements of matrices allow.
FIRST, FEWEST, MOST = 32, 8, 64
AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Evidence:
    """What the spectrum says of F: `energies` [k], the e_i of the directions that count (0 elsewhere); `spanned` [k];
    `rest`, what of ||F||^2 lies outside of them; `left`, how many rows are left beside them."""

    energies: Array
    spanned: Array
    rest: Array
    left: Array


def by_spectrum(values: Array, evidence: Evidence, floor: Array, exponents: Array, xp: Any) -> tuple[Array, Array]:
    """lambda >= floor > 0, and whether it is a minimum between the bounds; `values` [k] of torch or numpy (`xp`)."""
    low, high = floor, xp.maximum(values[-1] * TOP, floor * TOP)
    bottom, top = low, high
    for _ in range(ROUNDS):
        grid = low * (high / low) ** exponents
        best, low, high = _around_best(grid, _scores(values, evidence, grid), xp)
    active = (best > bottom) & (best < top)
    s, e = values, evidence.energies
    root = best
    for _ in range(NEWTON_STEPS):
        r = xp.where(evidence.spanned, 1.0 / (s + root), 0.0)
        r2 = r * r
        residual = (r2 * e).sum(-1) * root**2 + evidence.rest
        degrees = r.sum(-1) * root + evidence.left
        third, fourth = (s * e * r2 * r).sum(-1), (s * e * r2 * r2).sum(-1)
        step = _step(root, residual, degrees, third, fourth, (s * r2).sum(-1), (s * r2 * r).sum(-1), xp)
        root = xp.minimum(xp.maximum(root + step, low), high)
    return xp.where(active, root, best), active


def _scores(values: Array, evidence: Evidence, grid: Array) -> Array:
    kept = grid[:, None] / (values + grid[:, None])
    residual = (kept * kept * evidence.energies).sum(-1) + evidence.rest
    degrees = (kept * evidence.spanned).sum(-1) + evidence.left
    square = degrees * degrees
    return residual / (square + (square == 0.0))


def _around_best(grid: Array, scores: Array, xp: Any) -> tuple[Array, Array, Array]:
    """The largest of the best points of an ascending grid, and its neighbours."""
    best = xp.where(scores <= scores.min() * (1.0 + TIE), grid, grid[0]).max()
    low, high = xp.where(grid < best, grid, grid[0]).max(), xp.where(grid > best, grid, grid[-1]).min()
    return best, low, high


def _step(
    root: Array, residual: Array, degrees: Array, third: Array, fourth: Array, second: Array, weight: Array, xp: Any
) -> Array:
    """Newton on `lambda tr(R^3 T) D - N tr(R^2 K)`, the score's derivative up to a positive factor; 0 if it bends down.

    N and D are `residual` and `degrees`; `third`, `fourth` are tr(R^3 T), tr(R^4 T), `second`, `weight` tr(R^2 K) and
    tr(R^3 K).
    """
    derivative = root * third * degrees - residual * second
    slope = (third - 3.0 * root * fourth) * degrees - root * third * second + 2.0 * residual * weight
    return xp.where(slope > 0.0, -derivative / xp.where(slope > 0.0, slope, 1.0), 0.0)


@dataclass(frozen=True)
class Matrices:
    """`K`, `T` [k, k] as in `_multiplier`; `energy` = ||F||^2; `surplus` = d - k: negative where rows are left out.

    `outer`: F F^T in the dual form, in which the residual is lambda R F; the other formula loses it to rounding where
    it is small.
    """

    K: Tensor
    T: Tensor
    energy: Tensor
    surplus: int | Tensor
    outer: Tensor | None = None

    def terms(self, inverse: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        """N and D, for one inverse or many."""
        square = inverse @ inverse
        if self.outer is not None:
            residual = root**2 * (square * self.outer).sum((-2, -1))
        else:
            residual = self.energy - ((inverse + root.view(*root.shape, 1, 1) * square) * self.T.mT).sum((-2, -1))
        return residual, root * inverse.diagonal(dim1=-2, dim2=-1).sum(-1) + self.surplus

    def newton(self, root: Tensor) -> Tensor:
        """The step from `root` to the minimum, differentiable."""
        inverse = shifted_inverse(self.K, root)
        residual, degrees = self.terms(inverse, root)
        square = inverse @ inverse
        cube = square @ inverse

        def trace(a: Tensor, b: Tensor) -> Tensor:
            return (a * b.mT).sum()

        third, fourth = trace(cube, self.T), trace(cube @ inverse, self.T)
        step: Tensor = _step(root, residual, degrees, third, fourth, trace(square, self.K), trace(cube, self.K), torch)
        return step


def by_inverses(matrices: Matrices, floor: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """The same with matrix inverses alone, to a few hundredths of lambda before the Newton steps."""
    K = matrices.K
    identity = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
    low, high = floor, torch.maximum(largest, floor) * TOP
    bottom, top = low, high
    width, points = RANGE, max(FEWEST, min(MOST, AT_ONCE // K.shape[-1] ** 2))
    while width > CLOSE:
        tried = max(points, FIRST) if width == RANGE else points
        grid = low * (high / low) ** torch.linspace(0.0, 1.0, tried, dtype=K.dtype, device=K.device)
        residual, degrees = matrices.terms(solved(shifted(K, grid, identity), identity), grid)
        best, low, high = _around_best(grid, residual.clamp_min(0.0) / (degrees * degrees), torch)
        width *= 2.0 / (tried - 1)
    active = (best > bottom) & (best < top)
    root = best
    for _ in range(2):
        root = torch.minimum(torch.maximum(root + matrices.newton(root), low), high)
    return torch.where(active, root, best), active


def attach_gradient(multiplier: Tensor, matrices: Matrices, active: Tensor) -> Tensor:
    """`multiplier` with the derivative of where the minimum is, right to third order."""
    root = multiplier
    for _ in range(2):
        root = root + matrices.newton(root)
    return torch.where(active, root, multiplier)
