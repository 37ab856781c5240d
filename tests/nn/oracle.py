"""RegBN written straight from its equations with numpy and an SVD: shares no code and no method with the library.

Everything is float64. lambda is found by bisection on the definition; W by the singular value decomposition of g.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
EPS32 = float(np.finfo(np.float32).eps)


def layer_norm(x: Array) -> Array:
    dims = tuple(range(1, x.ndim))
    return (x - x.mean(dims, keepdims=True)) / np.sqrt(x.var(dims, keepdims=True) + 1e-5)


def batch_norm(x: Array) -> Array:
    dims = (0, *range(2, x.ndim))
    return (x - x.mean(dims, keepdims=True)) / np.sqrt(x.var(dims, keepdims=True) + 1e-5)


def input_norm(x: Array) -> Array:
    return layer_norm(x) if x.ndim <= 3 else batch_norm(x)


def decompose(G: Array, size: int, threshold: float = 0.0, substitute: float = 0.0) -> tuple[Array, ...]:
    """`(U, sigma, replaced, V)` of G without its numerical null space; `size` is that of the Gram matrix solved in."""
    U, sigma, Vt = np.linalg.svd(G, full_matrices=False)
    spanned = sigma**2 > size * EPS32 * sigma[0] ** 2
    U, sigma, Vt = U[:, spanned], sigma[spanned], Vt[spanned]
    replaced = sigma.copy()
    if len(sigma):
        replaced[sigma <= threshold * sigma[0]] = substitute
    return U, sigma, replaced, Vt.T


def left_side(G: Array, F: Array, lam: float, constraint: str, size: int, **thresholds: float) -> float:
    """The squared norm that the constraint sets to 1."""
    U, _, replaced, _ = decompose(G, size, **thresholds)
    if constraint == "smoother":
        return float(((replaced**2 / (replaced**2 + lam)) ** 2).sum())
    return float((((replaced / (replaced**2 + lam))[:, None] * (U.T @ F)) ** 2).sum())


def multiplier(G: Array, F: Array, constraint: str, size: int, **thresholds: float) -> tuple[float, bool]:
    """lambda and whether the constraint is active, by 200 halvings."""
    largest = float(np.linalg.norm(G, 2) ** 2)
    if largest == 0.0:
        return 1.0, False
    low = size * EPS32 * largest
    if left_side(G, F, low, constraint, size, **thresholds) <= 1.0:
        return low, False
    high = low
    while left_side(G, F, high, constraint, size, **thresholds) > 1.0:
        high *= 2.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if left_side(G, F, middle, constraint, size, **thresholds) > 1.0:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high), True


def projection(G: Array, F: Array, lam: float, size: int, **thresholds: float) -> Array:
    """`sum_i v_i sigma_i / (sigma_i^2 + lambda) u_i^T F`, with replaced singular values."""
    U, _, replaced, V = decompose(G, size, **thresholds)
    return (V * (replaced / (replaced**2 + lam))) @ (U.T @ F)


def clear_of_zero_level(G: Array, size: int) -> bool:
    """No singular value lies where rounding decides whether it counts as zero."""
    sigma = np.linalg.svd(G, compute_uv=False) ** 2
    level = size * EPS32 * sigma[0]
    return not ((sigma > 1e-6 * level) & (sigma < 10 * level)).any()


def gcv_score(G: Array, F: Array, lam: Array, centred: bool = False) -> Array:
    """The score of generalised cross-validation at each lambda [k], from the hat matrix itself; [k]."""
    if centred:
        G, F = G - G.mean(0), F - F.mean(0)
    d = len(G) - centred
    scores = []
    for value in np.atleast_1d(lam):
        hat = G @ np.linalg.solve(G.T @ G + value * np.eye(G.shape[1]), G.T)
        scores.append(((F - hat @ F) ** 2).sum() / (d - np.trace(hat)) ** 2)
    return np.array(scores)


class Oracle:
    """Steps of RegBN with the running projection, for the options `normalize_input` and `normalize_output`."""

    def __init__(self, m: int, n: int, *, constraint: str, normalize_input: bool, normalize_output: bool) -> None:
        self.W, self.mean, self.square, self.steps = np.zeros((m, n)), 0.0, 0.0, 0
        self.constraint, self.normalize_input, self.normalize_output = (
            constraint,
            normalize_input,
            normalize_output,
        )

    def output(self, f: Array, g: Array, W: Array) -> tuple[Array, Array]:
        residual = (f.reshape(len(f), -1) - g.reshape(len(g), -1) @ W).reshape(f.shape)
        return (layer_norm(residual), layer_norm(g)) if self.normalize_output else (residual, g)

    def train(self, f: Array, g: Array, size: int) -> tuple[Array, Array]:
        F, G = (input_norm(x) if self.normalize_input else x for x in (f, g))
        F, G = F.reshape(len(f), -1), G.reshape(len(g), -1)
        lam, _ = multiplier(G, F, self.constraint, size)
        W_batch = projection(G, F, lam, size)
        change = np.abs(self.W - W_batch).mean()
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * change
        self.square = 0.99 * self.square + 0.01 * change**2
        corrected = np.sqrt(self.square / (1 - 0.99**self.steps))
        share = 0.02 * (self.mean / (1 - 0.9**self.steps)) / (corrected + 1e-8)
        self.W = (1 - share) * self.W + share * W_batch
        return self.output(f, g, W_batch)

    def evaluate(self, f: Array, g: Array) -> tuple[Array, Array]:
        return self.output(f, g, self.W)
