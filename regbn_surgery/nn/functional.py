"""RegBN's fit as pure functions of the features: from two batches to the projection, with gradient.

Shapes: G, the fitted features of g, is [b, m]; F, those of f, is [b, n]; both are already normalised where that is
wanted. W = G^T (G G^T + lambda I)^-1 F is [m, n]. Source: the RegBN paper (NeurIPS 2023), its ridge problem in
closed form; see `_multiplier` for the equations of lambda.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _gcv
from ._inverses import solve_by_inverses
from ._linalg import cross_gram, gram, unit_of, values_at_hand, with_inverse_gradient
from ._multiplier import (
    Problem,
    Ridge,
    Sizes,
    attach_gradient,
    gcv_matrices,
    solve_by_eigenvectors,
)
from ._no_gradient import without_gradient
from ._ranks import Ranks
from ._threshold import thresholded_inverse

__all__ = ["Problem", "dual", "primal", "projection", "subtract_dual"]


def dual(
    G: Tensor, F: Tensor, problem: Problem, multiplier: Tensor | None = None, rows: int | Tensor | None = None
) -> tuple[Tensor, Tensor, Ridge]:
    """Solve in the batch: `(R, K, solution)` with K = G G^T, R = (K + lambda I)^-1, [b, b], so that W = G^T R F.

    R carries the gradient; `solution.inverse` is the same without it. A given `multiplier` (0-dimensional) is
    used in place of lambda. `rows` is how many rows count where the others are zero; None: all.
    """
    K = gram(G)
    moment, energy, outer = None, None, None
    if problem.needs_moment:
        outer = gram(F)
        moment, energy = K @ outer, outer.diagonal().sum()
    sizes = Sizes.of(len(G) if rows is None else rows, G.shape[1], True, problem, energy, outer)
    inverse, solution = _regularised_inverse(K, moment, sizes, problem, multiplier)
    return inverse, K, solution


def primal(
    G: Tensor, F: Tensor, problem: Problem, multiplier: Tensor | None = None, ranks: Ranks | None = None
) -> tuple[Tensor, Ridge]:
    """Solve in the features of g: `(W, solution)` with W = (G^T G + lambda I)^-1 G^T F, [m, n], with gradient.

    With `ranks` G and F are this rank's rows of the joined batch.
    """
    W, unit, solution = primal_in_units(G, F, problem, multiplier, ranks)
    return in_units(W, unit), solution


def primal_in_units(
    G: Tensor,
    F: Tensor,
    problem: Problem,
    multiplier: Tensor | None = None,
    ranks: Ranks | None = None,
    rows: int | Tensor | None = None,
) -> tuple[Tensor, float | Tensor, Ridge]:
    """`(unit W, unit, solution)`: W with G measured in `unit`, 1 unless G is of a size at which W leaves float32.

    `rows` is how many rows of all count where the others are zero; None: all of this rank.
    """
    S = gram(G.mT)
    energy = F.to(S.dtype).square().sum() if problem.constraint == "gcv" else None
    unit = unit_of(S.diagonal().sum().sqrt())
    Q = in_units(G, unit).mT @ F
    if ranks is not None:
        S, wide, energy = _summed(S, Q.to(S.dtype) * unit, energy, ranks)
        unit = unit_of(S.diagonal().sum().sqrt())  # the same everywhere
        Q = (wide / unit).to(F.dtype)
    moment = gram(Q) * unit**2 if problem.needs_moment else None
    sizes = Sizes.of(len(G) if rows is None else rows, G.shape[1], False, problem, energy)
    inverse, solution = _regularised_inverse(S, moment, sizes, problem, multiplier)
    square = unit**2
    W = _with_value((inverse * square).to(F.dtype) @ Q, (solution.spanned * square).to(F.dtype) @ Q)
    return W, unit, solution


def in_units(x: Tensor, unit: float | Tensor) -> Tensor:
    """`x / unit`, and `x` itself where that is 1."""
    return x if isinstance(unit, float) and unit == 1.0 else x / unit


def _summed(S: Tensor, Q: Tensor, energy: Tensor | None, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor | None]:
    """All of them over all ranks, in one all-reduce."""
    parts = [S, Q] if energy is None else [S, Q, energy.expand(len(S), 1) / len(S)]
    sums = ranks.sum(torch.cat(parts, dim=1))
    total = None if energy is None else sums[:, -1].sum()
    return sums[:, : len(S)], sums[:, len(S) : len(S) + Q.shape[1]], total


def projection(G: Tensor, F: Tensor, problem: Problem, multiplier: Tensor | None = None) -> Tensor:
    """The projection W of the batch, [m, n], with gradient, by whichever form is smaller."""
    if G.shape[0] <= G.shape[1]:
        inverse, _, solution = dual(G, F, problem, multiplier)
        return _with_value(G.mT @ (inverse.to(F.dtype) @ F), G.mT @ (solution.spanned.to(F.dtype) @ F))
    return primal(G, F, problem, multiplier)[0]


def subtract_dual(f: Tensor, g: Tensor, G: Tensor, F: Tensor, fit: tuple[Tensor, Tensor, Ridge]) -> Tensor:
    """`f - g W` in the dual form, without ever forming W: `f - (g G^T R) F`; `g` may be `G` itself.

    `fit` is what `dual` gave. The value is that of the W with the numerical null space taken out, which the running
    projection follows: where g is not G, what g has there is not small.
    """
    inverse, K, solution = fit
    cross = K if g is G else cross_gram(g, G)  # only this rank's rows where the fit is joined
    weights = _with_value(cross @ inverse, cross.detach() @ solution.spanned)
    return torch.addmm(f, weights.to(f.dtype), F, alpha=-1.0)


@without_gradient
def factors_in_units(G: Tensor, F: Tensor, K: Tensor, solution: Ridge) -> tuple[Tensor, Tensor, Tensor]:
    """`rows` [b, m] and `columns` [b, n] with W = rows.T @ columns, and ||W||_F; without gradient.

    Both are within the range of float32 where W is, whatever the size of G.
    """
    unit = unit_of(K.diagonal().amax().sqrt())
    spanned = solution.spanned
    if isinstance(unit, Tensor) or unit != 1.0:
        spanned = spanned * unit
    columns = spanned.to(F.dtype) @ F
    size: Tensor = torch.linalg.vector_norm(columns, dtype=K.dtype)
    divisor = unit_of(size) if values_at_hand(size) else size.clamp_min(torch.finfo(F.dtype).tiny)
    small = in_units(columns, divisor)  # whose squares are in range
    norm = (K * (small @ small.mT)).sum().clamp_min(0.0).sqrt() * (divisor / unit)
    return in_units(G.detach(), unit), columns, norm


def _regularised_inverse(
    K: Tensor, moment: Tensor | None, sizes: Sizes, problem: Problem, given: Tensor | None
) -> tuple[Tensor, Ridge]:
    solution = _solve(K, moment, sizes, problem, given)
    if problem.thresholded and solution.spectrum is not None:
        return thresholded_inverse(K, solution.spanned, solution.spectrum, solution.multiplier), solution
    multiplier = solution.multiplier
    if given is not None:
        multiplier = given.to(K.dtype)
    elif problem.lambda_grad == "implicit":
        multiplier = _implicit(multiplier, K, moment, sizes, problem, solution.active)
    return with_inverse_gradient(K, multiplier, solution.inverse), solution


def _implicit(
    multiplier: Tensor, K: Tensor, moment: Tensor | None, sizes: Sizes, problem: Problem, active: Tensor
) -> Tensor:
    """`multiplier` with the derivative of what decides it."""
    if problem.constraint == "fixed":
        return torch.where(active, problem.fixed(K.diagonal().sum(), sizes), multiplier)
    if problem.constraint == "gcv" and moment is not None:
        return _gcv.attach_gradient(multiplier, gcv_matrices(K, moment, sizes), active)
    return attach_gradient(multiplier, K, K @ K if moment is None else moment, active)


def _with_value(x: Tensor, value: Tensor) -> Tensor:
    """`value` with the derivative of `x`.

    `x` is a product with the whole inverse, `value` with the numerical null space taken out. The derivative needs
    the null space (its terms cancel or count), while in the value it is rounding noise over a small lambda.
    """
    return x + (value - x).detach()


@without_gradient
def _solve(K: Tensor, moment: Tensor | None, sizes: Sizes, problem: Problem, given: Tensor | None) -> Ridge:
    K = K.detach()
    moment = None if moment is None else moment.detach()
    given = None if given is None else given.detach().to(K.dtype)
    by = solve_by_eigenvectors if K.device.type == "cpu" or problem.thresholded else solve_by_inverses
    return by(K, moment, sizes, problem, given)
