"""RegBN's fit as pure functions of the features: from two batches to the projection, with gradient.

Shapes: G, the fitted features of g, is [b, m]; F, those of f, is [b, n]; both are already normalised where that is
wanted. W = G^T (G G^T + lambda I)^-1 F is [m, n]. Source: the RegBN paper (NeurIPS 2023), its ridge problem in
closed form; see `_multiplier` for the equations of lambda.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._linalg import cross_gram, gram, with_inverse_gradient
from ._multiplier import FLOAT32, Limits, Ridge, attach_gradient, solve_by_eigenvectors, solve_by_inverses
from ._ranks import Ranks
from ._threshold import thresholded_inverse
from .options import Constraint, LambdaGrad


@dataclass(frozen=True)
class Problem:
    """What of the options decides the fit."""

    constraint: Constraint = "smoother"
    lambda_grad: LambdaGrad = "constant"
    limits: Limits = FLOAT32

    @property
    def thresholded(self) -> bool:
        return self.limits.threshold > 0.0


def dual(G: Tensor, F: Tensor, problem: Problem, multiplier: Tensor | None = None) -> tuple[Tensor, Tensor, Ridge]:
    """Solve in the batch: `(R, K, solution)` with K = G G^T, R = (K + lambda I)^-1, [b, b], so that W = G^T R F.

    R carries the gradient; `solution.inverse` is the same without it. A given `multiplier` (0-dimensional) is
    used in place of the root of the constraint.
    """
    K = gram(G)
    needs_moment = problem.constraint == "frobenius"
    moment = K @ gram(F) if needs_moment else None
    inverse, solution = _regularised_inverse(K, moment, problem, multiplier)
    return inverse, K, solution


def primal(
    G: Tensor, F: Tensor, problem: Problem, multiplier: Tensor | None = None, ranks: Ranks | None = None
) -> tuple[Tensor, Ridge]:
    """Solve in the features of g: `(W, solution)` with W = (G^T G + lambda I)^-1 G^T F, [m, n], with gradient.

    With `ranks` G and F are this rank's rows of the joined batch.
    """
    S = gram(G.mT)
    Q = G.mT @ F
    if ranks is not None:
        sums = ranks.sum(torch.cat([S, Q.to(S.dtype)], dim=1))
        S, Q = sums[:, : len(S)], sums[:, len(S) :].to(F.dtype)
    moment = gram(Q) if problem.constraint == "frobenius" else None
    inverse, solution = _regularised_inverse(S, moment, problem, multiplier)
    W = _with_value(inverse.to(F.dtype) @ Q, solution.spanned.to(F.dtype) @ Q)
    return W, solution


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


def _regularised_inverse(
    K: Tensor, moment: Tensor | None, problem: Problem, given: Tensor | None
) -> tuple[Tensor, Ridge]:
    with torch.no_grad():
        solution = _solve(K, moment, problem, given)
    if problem.thresholded and solution.spectrum is not None:
        return thresholded_inverse(K, solution.spanned, solution.spectrum, solution.multiplier), solution
    multiplier = solution.multiplier
    if given is not None:
        multiplier = given.to(K.dtype)
    elif problem.lambda_grad == "implicit":
        multiplier = attach_gradient(multiplier, K, K @ K if moment is None else moment, solution.active)
    return with_inverse_gradient(K, multiplier, solution.inverse), solution


def _with_value(x: Tensor, value: Tensor) -> Tensor:
    """`value` with the derivative of `x`.

    `x` is a product with the whole inverse, `value` with the numerical null space taken out. The derivative needs
    the null space (its terms cancel or count), while in the value it is rounding noise over a small lambda.
    """
    return x + (value - x).detach()


def _solve(K: Tensor, moment: Tensor | None, problem: Problem, given: Tensor | None) -> Ridge:
    K = K.detach()
    moment = None if moment is None else moment.detach()
    given = None if given is None else given.detach().to(K.dtype)
    if K.device.type == "cpu" or problem.thresholded:
        return solve_by_eigenvectors(K, moment, problem.constraint, problem.limits, given)
    return solve_by_inverses(K, moment, problem.constraint, problem.limits, given)
