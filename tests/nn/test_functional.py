"""The fit against the oracle: any shape, scale and rank, both constraints, both forms, and its derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from regbn_surgery.nn import _inverses, functional
from regbn_surgery.nn._inverses import solve_by_inverses
from regbn_surgery.nn._multiplier import Limits, Sizes, solve_by_eigenvectors, solve_root
from regbn_surgery.nn.functional import Problem

from . import oracle

CONSTRAINTS = ["smoother", "frobenius"]
EPS32 = oracle.EPS32


def features(seed: int, b: int, m: int, n: int, rank: int, log_scale: float, decay: float) -> tuple[np.ndarray, ...]:
    """G [b, m] of the given rank whose singular values fall by `decay` from one to the next, and F [b, n]."""
    rng = np.random.default_rng(seed)
    rank = min(rank, b, m)
    U = np.linalg.qr(rng.standard_normal((b, b)))[0][:, :rank]
    V = np.linalg.qr(rng.standard_normal((m, m)))[0][:, :rank]
    G = (U * (10.0**log_scale * decay ** np.arange(rank))) @ V.T
    return G, rng.standard_normal((b, n)) + G[:, :1]


shapes = st.tuples(
    st.integers(0, 10**6),
    st.integers(2, 12),
    st.integers(1, 14),
    st.integers(1, 6),
    st.integers(0, 12),
    st.floats(-3.0, 3.0),
    st.floats(0.2, 1.0),
)


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
@settings(max_examples=60, deadline=None)
@given(shape=shapes)
def test_fit_against_the_oracle(constraint: str, form: str, shape: tuple) -> None:
    G, F = features(*shape)
    size = len(G) if form == "dual" else G.shape[1]
    assume(not G.any() or oracle.clear_of_zero_level(G, size))
    want_lam, active = oracle.multiplier(G, F, constraint, size)
    problem = Problem(constraint)
    tensors = torch.from_numpy(G), torch.from_numpy(F)
    if form == "dual":
        _, _, solution = functional.dual(*tensors, problem)
        W = tensors[0].T @ solution.spanned @ tensors[1]
    else:
        W, solution = functional.primal(*tensors, problem)
    lam = float(solution.multiplier)
    if active:
        assert abs(oracle.left_side(G, F, lam, constraint, size) - 1.0) <= 1e-8
        assert bool(solution.active)
    else:
        assert lam == pytest.approx(want_lam, rel=1e-6)
    want = oracle.projection(G, F, lam, size)
    np.testing.assert_allclose(W.numpy(), want, atol=1e-8 * max(np.abs(want).max(), 1e-300), rtol=0)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_low_ranks(constraint: str, rank: int) -> None:
    """Rank 0: nothing is subtracted. Rank 1: the smoother's constraint never binds. Rank 2: it does."""
    G, F = features(0, 8, 5, 3, rank, 0.0, 0.5)
    for solve in (functional.dual, functional.primal):
        solution = solve(torch.from_numpy(G), torch.from_numpy(F), Problem(constraint))[-1]
        want, active = oracle.multiplier(G, F, constraint, 8 if solve is functional.dual else 5)
        assert bool(solution.active) == active
        assert float(solution.multiplier) == pytest.approx(want, rel=1e-6)
        if constraint == "smoother":
            assert active == (rank == 2)
    W = functional.projection(torch.from_numpy(G), torch.from_numpy(F), Problem(constraint))
    assert torch.isfinite(W).all()
    assert rank > 0 or not W.any()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 40),
    decades=st.floats(0.0, 12.0),
    log_scale=st.floats(-8.0, 8.0),
    log_energy=st.floats(-6.0, 6.0),
)
def test_root_from_any_spectrum(seed: int, size: int, decades: float, log_scale: float, log_energy: float) -> None:
    rng = np.random.default_rng(seed)
    values = 10.0 ** (log_scale - decades * rng.random(size))
    energies = values**2 * rng.exponential(size=size) * 10.0**log_energy
    floor = size * EPS32 * values.max()
    root, active = solve_root(
        torch.from_numpy(values), torch.from_numpy(energies), torch.tensor(floor, dtype=torch.float64)
    )
    by_numpy, active_by_numpy = solve_root(values, energies, floor)
    assert float(root) == pytest.approx(float(by_numpy), rel=1e-9)
    assert bool(active) == bool(active_by_numpy)
    left = (energies / (values + float(root)) ** 2).sum()
    assert float(root) >= floor
    if (energies / (values + floor) ** 2).sum() > 1.0:
        assert bool(active)
        assert abs(left - 1.0) <= 1e-9
    else:
        assert float(root) == floor


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@settings(max_examples=40, deadline=None)
@example(shape=(1, 2, 1, 1, 1, 2.0, 1.0))  # frobenius, rank 1: rounding of T over the square of a small lambda
@example(shape=(101130, 7, 1, 1, 12, -1.0, 0.2))  # the same in the bracket
@given(shape=shapes)
def test_inverses_find_what_eigenvectors_find(constraint: str, shape: tuple) -> None:
    """The two ways to the root, of which other devices take the one without a decomposition."""
    G, F = features(*shape)
    K = torch.from_numpy(G @ G.T)
    T = K @ torch.from_numpy(F @ F.T)
    assume(not G.any() or oracle.clear_of_zero_level(G, len(G)))
    problem = Problem(constraint)
    sizes = Sizes.of(len(G), G.shape[1], True, problem)
    ours, theirs = (solve(K, T, sizes, problem) for solve in (solve_by_inverses, solve_by_eigenvectors))
    floor = len(G) * EPS32 * float(K.diagonal().sum())  # of theirs or up to the rank times it
    if bool(theirs.active) and float(theirs.multiplier) > 2 * floor:
        # Not lambda itself: near its floor W and the constraint hardly depend on it
        assert abs(oracle.left_side(G, F, float(ours.multiplier), constraint, len(G)) - 1.0) <= 1e-5
        product, want = torch.from_numpy(G.T) @ ours.spanned, torch.from_numpy(G.T) @ theirs.spanned
        torch.testing.assert_close(product, want, rtol=0, atol=1e-5 * float(want.abs().max()))
    else:
        assert float(ours.multiplier) <= 100 * max(floor, 1e6 * len(G) * EPS32 * (not G.any()))


@pytest.mark.parametrize("at_once", [1, 1 << 22])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_lambda_by_inverses_is_that_by_eigenvectors(constraint: str, at_once: int, monkeypatch) -> None:
    """To 1e-9 where every direction counts, at any scale, however few matrices are solved at once."""
    monkeypatch.setattr(_inverses, "AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    for k, decades, scale in [(2, 0.3, 1e-30), (7, 2.0, 1.0), (12, 1.0, 1e30), (32, 2.0, 1e15), (40, 2.4, 1e-15)]:
        basis = np.linalg.qr(rng.standard_normal((k, k)))[0]
        K = torch.from_numpy((basis * np.logspace(0.0, -2.0 * decades, k)) @ basis.T) * scale**2
        L = torch.from_numpy(np.cov(rng.standard_normal((k, 50)))) * 10.0 ** rng.uniform(0.0, 30.0)
        problem = Problem(constraint)
        sizes = Sizes.of(k, k, True, problem)
        ours, theirs = (solve(K, K @ L, sizes, problem) for solve in (solve_by_inverses, solve_by_eigenvectors))
        assert bool(ours.active) == bool(theirs.active)
        if theirs.active:
            assert float(ours.multiplier) == pytest.approx(float(theirs.multiplier), rel=1e-9, abs=0.0)


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize(("threshold", "substitute"), [(0.3, 0.0), (0.3, 0.1)])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_thresholds_against_the_oracle(constraint: str, threshold: float, substitute: float, form: str) -> None:
    G, F = features(3, 7, 6, 4, 5, 0.5, 0.6)
    options = {"threshold": threshold, "substitute": substitute}
    problem = Problem(constraint, limits=Limits(EPS32, threshold, substitute))
    tensors = torch.from_numpy(G), torch.from_numpy(F)
    if form == "dual":
        inverse, _, solution = functional.dual(*tensors, problem)
        W = tensors[0].T @ inverse @ tensors[1]
    else:
        W, solution = functional.primal(*tensors, problem)
    size = 7 if form == "dual" else 6
    lam = float(solution.multiplier)
    assert lam == pytest.approx(oracle.multiplier(G, F, constraint, size, **options)[0], rel=1e-8)
    np.testing.assert_allclose(W.numpy(), oracle.projection(G, F, lam, size, **options), atol=1e-10)
    assert np.abs(W.numpy() - oracle.projection(G, F, lam, size)).max() > 1e-3  # the threshold did something


def _fit(constraint: str, lambda_grad: str, form: str, lam: float | None = None, **options: float):
    problem = Problem(constraint, lambda_grad, Limits(EPS32, **options))

    def fit(G: torch.Tensor, F: torch.Tensor) -> torch.Tensor:
        given = None if lam is None else torch.tensor(lam, dtype=torch.float64)
        if form == "primal":
            return functional.primal(G, F, problem, given)[0]
        solved = functional.dual(G, F, problem, given)
        return functional.subtract_dual(F, 2.0 * G, G, F, solved) + (G.T @ solved[0] @ F).sum()

    return fit


def _inputs(b: int, m: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    make = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64).requires_grad_()  # noqa: E731
    return make(b, m), make(b, n)


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("sizes", [(4, 6, 3), (6, 3, 2)])
def test_derivatives_with_lambda_given(form: str, sizes: tuple[int, int, int]) -> None:
    inputs = _inputs(*sizes)
    assert gradcheck(_fit("smoother", "constant", form, lam=1.5), inputs)
    assert gradgradcheck(_fit("smoother", "constant", form, lam=1.5), inputs)


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_derivatives_of_the_root(constraint: str, form: str) -> None:
    inputs = _inputs(4, 5, 3)
    assert gradcheck(_fit(constraint, "implicit", form), inputs)
    assert gradgradcheck(_fit(constraint, "implicit", form), inputs)
    with pytest.raises(RuntimeError):  # the check can fail: lambda held constant is not the derivative
        gradcheck(_fit(constraint, "constant", form), inputs)


@pytest.mark.parametrize("substitute", [0.0, 0.4])
@pytest.mark.parametrize("form", ["dual", "primal"])
def test_derivatives_with_thresholds(form: str, substitute: float) -> None:
    fit = _fit("smoother", "constant", form, lam=0.7, threshold=0.5, substitute=substitute)
    assert gradcheck(fit, _inputs(5, 4, 2))


def test_torch_func() -> None:
    """vmap over independent fits, and forward over a stack of vectors of the reverse derivative."""
    G, F = torch.randn(3, 5, 6, dtype=torch.float64), torch.randn(3, 5, 2, dtype=torch.float64)
    lam = torch.tensor(0.8, dtype=torch.float64)

    def fit(G: torch.Tensor, F: torch.Tensor) -> torch.Tensor:
        return functional.projection(G, F, Problem(), lam)

    each = torch.stack([fit(G[i], F[i]) for i in range(3)])
    torch.testing.assert_close(torch.func.vmap(fit)(G, F), each)
    gradient = torch.func.grad(lambda G: fit(G, F[0]).square().sum())(G[0])
    leaf = G[0].clone().requires_grad_()
    fit(leaf, F[0]).square().sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)
    assert torch.func.jacrev(fit)(G[0], F[0]).shape == (6, 2, 5, 6)
