"""The two ways to lambda that need no equation: "fixed" and "gcv", against their definitions."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from regbn_surgery import RegBN
from regbn_surgery.nn import functional
from regbn_surgery.nn._inverses import solve_by_inverses
from regbn_surgery.nn._multiplier import Sizes, solve_by_eigenvectors
from regbn_surgery.nn.functional import Problem

from . import oracle

WAYS = {
    "smoother": {},
    "frobenius": {},
    "fixed": {"lam": 0.1},
    "absolute": {"constraint": "fixed", "lam": 2.0, "lam_scale": "absolute"},
    "gcv": {},
}


def options_of(way: str) -> dict[str, object]:
    return {"constraint": way, **WAYS[way]}


def dependent(seed: int, b: int, m: int, n: int, factors: int, noise: float, offset: float = 0.0) -> tuple:
    """f and g [b, .] with `factors` shared ones."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((b, factors))
    f = shared @ rng.standard_normal((factors, n)) + noise * rng.standard_normal((b, n)) + offset
    g = shared @ rng.standard_normal((factors, m)) + noise * rng.standard_normal((b, m)) + offset
    return f, g


cases = st.tuples(
    st.integers(0, 10**6),
    st.integers(3, 30),
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(0, 6),
    st.floats(0.01, 3.0),
    st.floats(0.0, 3.0),
)


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("centre", [False, True])
@settings(max_examples=25, deadline=None)
@given(case=cases)
def test_gcv_is_the_least_score_of_a_brute_force_search(case: tuple, centre: bool, form: str) -> None:
    """In both forms no lambda of a fine grid has a lower score, and it is found again by inverses alone."""
    f, g = dependent(*case)
    module = RegBN(f.shape[1], g.shape[1], constraint="gcv", centre=centre, form=form, normalize_output=False).double()
    module(torch.from_numpy(f), torch.from_numpy(g))
    G, F = (x - x.mean(0) if centre else x for x in (g, f))
    size = min(g.shape)
    assume(oracle.clear_of_zero_level(G, size))
    top = np.linalg.norm(G, 2) ** 2
    low = size * oracle.EPS32 * top
    tried = np.geomspace(low, 1e4 * top, 2000)
    scores = oracle.gcv_score(g, f, tried, centre)
    ours = oracle.gcv_score(g, f, float(module.multiplier), centre)[0]
    assert ours <= scores.min() * (1 + 1e-6)

    K = torch.from_numpy(G @ G.T)
    L = torch.from_numpy(F @ F.T)
    problem = Problem("gcv", centred=centre)
    sizes = Sizes.of(len(g), g.shape[1], True, problem, L.diagonal().sum(), L)
    found = [solve(K, K @ L, sizes, problem).multiplier for solve in (solve_by_eigenvectors, solve_by_inverses)]
    by_vectors, by_inverses = (oracle.gcv_score(g, f, float(x), centre)[0] for x in found)
    assert by_inverses <= by_vectors * (1 + 1e-4)


def test_gcv_takes_the_largest_of_equal_scores() -> None:
    """Two centred samples: every lambda has the same score, so that nothing is known, and nothing removed."""
    f, g = torch.randn(2, 3), torch.randn(2, 4)
    module = RegBN(3, 4, constraint="gcv", centre=True, normalize_output=False)
    torch.testing.assert_close(module(f, g)[0], f, atol=1e-3, rtol=0)


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_fixed_is_relative_to_the_mean_eigenvalue_or_absolute(form: str) -> None:
    """The same in both forms, and at any scale of g, where relative."""
    f, g = (torch.from_numpy(x) for x in dependent(0, 9, 5, 4, 2, 0.3))
    mean = float(torch.linalg.eigvalsh(g.T @ g).mean())
    for scale in (1e-6, 1.0, 1e6):
        module = RegBN(4, 5, constraint="fixed", lam=0.3, form=form, normalize_output=False).double()
        residual = module(f, scale * g)[0]
        assert float(module.multiplier) == pytest.approx(0.3 * mean * scale**2)
        want = f - g @ torch.linalg.solve(g.T @ g + 0.3 * mean * torch.eye(5), g.T @ f)
        torch.testing.assert_close(residual, want)
    absolute = RegBN(4, 5, constraint="fixed", lam=0.3, lam_scale="absolute", form=form).double()
    absolute(f, g)
    assert float(absolute.multiplier) == pytest.approx(0.3)


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_against_finite_differences(way: str, centre: bool, normalize: bool, form: str) -> None:
    """Of the whole step with `lambda_grad="implicit"`, and with a given lambda otherwise; with a row left out, too."""
    f, g = (torch.from_numpy(x).requires_grad_() for x in dependent(1, 9, 6, 4, 2, 0.7, offset=1.0))
    sizes = (4, 3, [], [2, 1])
    g_map = g.detach().view(9, 3, 2, 1).clone().requires_grad_()
    chosen = {**options_of(way), "centre": centre, "form": form, "normalize_input": normalize, "affine": True}
    present = torch.arange(9) != 4
    for rows in (None, present):
        implicit = RegBN(*sizes, **chosen, lambda_grad="implicit").double()
        assert torch.autograd.gradcheck(partial(implicit, present=rows), (f, g_map))
        constant = RegBN(*sizes, **chosen).double()
        constant(f, g_map, present=rows)
        given_lambda = partial(constant, present=rows, multiplier=constant.multiplier.clone())
        assert torch.autograd.gradcheck(given_lambda, (f, g_map))


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_second_derivative_of_the_scored_lambda(form: str) -> None:
    torch.manual_seed(0)  # gradgradcheck draws the directions in which it looks
    f, g = (torch.from_numpy(x).requires_grad_() for x in dependent(1, 7, 4, 3, 2, 0.7))
    problem = Problem("gcv", "implicit")
    if form == "dual":
        G = g
        assert torch.autograd.gradgradcheck(lambda f, g: functional.dual(g, f, problem)[0] @ f, (f, G))
    else:
        assert torch.autograd.gradgradcheck(lambda f, g: functional.primal(g, f, problem)[0], (f, g))


def removed(factors: int, **options: object) -> float:
    """Held-out R2 of f' on g after training with running W, with so many shared factors, batch 256."""
    rng = np.random.default_rng(0)
    to_f, to_g = (rng.standard_normal((16, 32)) for _ in range(2))

    def draw(b: int) -> tuple[torch.Tensor, torch.Tensor]:
        shared = rng.standard_normal((b, factors))
        parts = (shared @ to[:factors] / factors**0.5 + rng.standard_normal((b, 32)) for to in (to_f, to_g))
        f, g = (torch.from_numpy(x).float() for x in parts)
        return f, g

    module = RegBN(32, 32, normalize_output=False, momentum=0.1, **options)
    for _ in range(80):
        module(*draw(256))
    f, g = draw(3000)
    left = module.eval()(f, g)[0].detach()
    W = torch.linalg.lstsq(g[:1500], left[:1500]).solution
    return 1 - float((left[1500:] - g[1500:] @ W).square().sum() / left[1500:].square().sum())


def test_what_each_constraint_removes() -> None:
    """The published constraint takes one direction; cross-validation takes those that are there."""
    assert removed(1, constraint="smoother") < 0.05
    assert removed(8, constraint="smoother") > 0.2
    assert removed(8, constraint="gcv") < 0.05
    assert removed(8, constraint="fixed", lam=0.05) < 0.05


@pytest.mark.parametrize("way", WAYS)
def test_every_way_resumes_bit_for_bit_and_folds_with_the_rest(way: str) -> None:
    """Two runs of the same batches are equal; `lam` and its kind are part of the options, not of the state."""
    f, g = (torch.from_numpy(x).float() for x in dependent(3, 12, 5, 4, 2, 0.5, offset=1.0))
    one, two = (RegBN(4, 5, **options_of(way), centre=True) for _ in range(2))
    for _ in range(3):
        one(f, g), two(f, g)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    low = RegBN(4, 5, **options_of(way), centre=True, projection="low_rank", rank=4)
    for _ in range(3):
        low(f, g)
    torch.testing.assert_close(low.multiplier, one.multiplier)
