"""lambda by matrix inverses alone, for devices on which a decomposition would make the host wait.

What such a device takes for a step is decided by how many operations are launched, not by how much each computes: many
values of lambda are tried in one operation, and nothing is done one after the other that can be done at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import _gcv
from ._linalg import shifted, solved
from ._multiplier import Problem, Ridge, Sizes, below_floor, fixed, gcv_matrices

#: Elements of all matrices that are solved at once, and how many there are of them at least and at most.
AT_ONCE = 1 << 22
FEWEST, MOST = 8, 32
BRACKETS = 31  # the bracket's logarithm is divided by so much or more: neighbours differ by a factor of 1.7 at most
NODES = 12  # of the polynomial through the last bracket
SQUARINGS = {torch.float64: 5, torch.float32: 4}  # before numbers below 1 leave the range


def solve_by_inverses(
    K: Tensor, T: Tensor | None, sizes: Sizes, problem: Problem, given: Tensor | None = None
) -> Ridge:
    """As `solve_by_eigenvectors`, to the rounding of the sums where the constraint binds."""
    identity = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
    norm = torch.linalg.vector_norm(K)
    largest = _largest_eigenvalue(K, norm)
    floor = torch.addcmul(largest == 0, largest, _as_tensor(sizes.zero, K), value=problem.limits.eps)
    span = _span(K, floor, identity)
    if problem.constraint == "fixed":
        root, active = fixed(K.diagonal().sum(), floor, sizes, problem, torch)
    elif problem.constraint == "gcv" and T is not None:
        root, active = _gcv.by_inverses(gcv_matrices(K, T, sizes), floor, largest)
    elif problem.constraint == "smoother" or T is None:
        root, active = _root(_smoother(K, K @ span, identity), norm, largest, floor, K.shape[-1])
    else:
        T = span @ T @ span  # K F F^T is not symmetric
        top = T.diagonal().sum().clamp_min(0.0).sqrt()
        root, active = _root(_moment(K, T, span, identity), top, largest, floor, K.shape[-1])
    multiplier = root if given is None else given
    inverse = solved(shifted(K, multiplier, identity), identity)
    return Ridge(multiplier, inverse, inverse @ span, active, norm < math.inf)


def _as_tensor(number: int | Tensor, like: Tensor) -> Tensor:
    return number if isinstance(number, Tensor) else like.new_full((), number)


Sizer = Callable[[Tensor], Tensor]


def _smoother(K: Tensor, in_span: Tensor, identity: Tensor) -> Sizer:
    """`||K R||_F` for each of many lambda, over the directions that count."""

    def size(grid: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(solved(shifted(K, grid, identity), in_span), dim=(-2, -1))
        return norms

    return size


def _moment(K: Tensor, T: Tensor, span: Tensor, identity: Tensor) -> Sizer:
    """`sqrt(tr(R^2 T))` likewise: elsewhere T is rounding, which a small lambda would lift."""

    def size(grid: Tensor) -> Tensor:
        inverses = solved(shifted(K, grid, identity), span)
        return ((inverses @ T) * inverses).sum((-2, -1)).sqrt()

    return size


def _root(size: Sizer, top: Tensor, largest: Tensor, floor: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The root of `size(lambda) = 1` or the floor, and whether the constraint binds.

    `top`^2 is the sum of all c_i: as every s_i lies between 0 and `largest`, the root lies between `top - largest` and
    `top`, within a factor of 1 / floor. Grids that are even in its logarithm narrow that down, and as 1 / size is
    nearly linear in lambda and smooth, the polynomial through the last grid that gives lambda for each 1 / size has it
    to rounding.
    """
    low = torch.maximum((top - largest) * 0.99, floor)  # so that rounding does not put it above the root
    ratio = torch.maximum(top, floor) / low
    points = max(FEWEST, min(MOST, AT_ONCE // k**2))

    def part_of_bracket(divided_by: float, points: int) -> Tensor:
        return torch.linspace(0.0, 1.0 / divided_by, points, dtype=top.dtype, device=top.device)

    exponents = part_of_bracket(1.0, points)
    cells, actives = 1.0, []
    while cells < BRACKETS:
        above = size(low * ratio**exponents) > 1.0
        actives.append(above[0])
        cells *= points - 1
        # From the last point above 1 to the next; where there is none, what follows has no meaning and no use.
        start = torch.add(exponents[0], above.sum() - 1, alpha=1.0 / cells)
        exponents = part_of_bracket(cells, points if cells < BRACKETS else NODES) + start
    grid = low * ratio**exponents
    return torch.where(actives[0], _through(grid, 1.0 / size(grid) - 1.0), floor), actives[0]


def _through(x: Tensor, y: Tensor) -> Tensor:
    """The value at 0 of the polynomial of least degree with the values x [p] at y [p] (Lagrange)."""
    factors = y[:, None] / (y[:, None] - y)
    factors.diagonal().fill_(1.0)
    return torch.dot(factors.prod(0), x)


def _span(K: Tensor, floor: Tensor, identity: Tensor) -> Tensor:
    """The projector onto the eigenvectors of K above `floor`, to 1e-5; of those a thousand times lower little is left.

    (K + mu I)^-1 K with mu far below the floor and far above the noise of a float64 K is near to it; a step of
    McWeeny's purification, 3 P^2 - 2 P^3, squares what is missing.
    """
    near = solved(torch.addcmul(K, identity, floor, value=below_floor(K)), K)
    square = near @ near
    return torch.addmm(square, square, near, beta=3.0, alpha=-2.0)


def _largest_eigenvalue(K: Tensor, norm: Tensor) -> Tensor:
    """An upper bound on the largest eigenvalue of K >= 0, at most k^(1/64) times it, by squaring five times."""
    power = K / norm.clamp_min(torch.finfo(K.dtype).tiny)
    squarings = SQUARINGS[K.dtype]
    for _ in range(squarings):
        power = power @ power
    bound: Tensor = norm * torch.linalg.vector_norm(power) ** (0.5**squarings)
    return bound
