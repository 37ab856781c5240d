"""The measures of dependence: known answers, the definition written out, and a kept library where installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regbn_surgery import RegBN, RegBNShapeError
from regbn_surgery._diagnosis import dependence, distance_correlation, linear_cka


def make(kind: str, b: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(b, 6, generator=generator)
    noise = torch.randn(b, 8, generator=generator)
    if kind == "independent":
        return noise, g
    if kind == "linear":
        return g @ torch.randn(6, 8, generator=generator) + 0.1 * noise, g
    if kind == "nonlinear":
        return g[:, :1].square() + 0.1 * noise[:, :1], g[:, :1]
    return g, g  # "same"


@pytest.mark.parametrize(
    ("kind", "explained", "cka", "distance"),
    [
        ("independent", (-0.1, 0.05), (-0.1, 0.1), (-0.1, 0.1)),
        ("linear", (0.98, 1.0), (0.5, 1.0), (0.4, 1.0)),
        ("nonlinear", (-0.1, 0.1), (-0.1, 0.1), (0.15, 1.0)),
        ("same", (0.999, 1.0), (0.999, 1.001), (0.999, 1.001)),
    ],
)
def test_known_answers(kind: str, explained: tuple, cka: tuple, distance: tuple) -> None:
    found = dependence(*make(kind))
    assert explained[0] <= found.explained_variance <= explained[1]
    assert cka[0] <= found.linear_cka <= cka[1]
    assert distance[0] <= found.distance_correlation <= distance[1]
    assert "held out" in str(found)


def test_more_features_than_samples_do_not_look_dependent() -> None:
    generator = torch.Generator().manual_seed(0)
    found = dependence(torch.randn(40, 3, 20, 20, generator=generator), torch.randn(40, 900, generator=generator))
    assert abs(found.linear_cka) < 0.1
    assert abs(found.distance_correlation) < 0.1
    assert found.explained_variance < 0.1


def test_distance_correlation_by_its_definition() -> None:
    """Székely and Rizzo 2014, definitions 2 and 3, in loops."""
    f, g = (x.double()[:12] for x in make("linear"))

    def centered(x: np.ndarray) -> np.ndarray:
        n = len(x)
        d = np.array([[np.linalg.norm(x[i] - x[j]) for j in range(n)] for i in range(n)])
        out = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                if i != j:
                    out[i, j] = d[i, j] - d[i].sum() / (n - 2) - d[:, j].sum() / (n - 2) + d.sum() / ((n - 1) * (n - 2))
        return out

    A, B = centered(f.numpy()), centered(g.numpy())
    want = (A * B).sum() / np.sqrt((A * A).sum() * (B * B).sum())
    assert distance_correlation(f, g) == pytest.approx(want, rel=1e-10)


def test_distance_correlation_against_dcor() -> None:
    dcor = pytest.importorskip("dcor", reason="dcor, a library for distance correlation, is not installed")
    f, g = (x.double() for x in make("linear"))
    want = dcor.u_distance_correlation_sqr(f.numpy(), g.numpy())
    assert distance_correlation(f, g) == pytest.approx(want, rel=1e-8)


def test_constant_features_are_independent_of_anything() -> None:
    f, g = make("linear")
    found = dependence(torch.full_like(f, 2.0), g)
    assert (found.explained_variance, found.linear_cka, found.distance_correlation) == (0.0, 0.0, 0.0)
    assert dependence(f, torch.zeros_like(g)).explained_variance == pytest.approx(0.0, abs=0.05)
    assert linear_cka(f.double(), torch.zeros_like(g).double()) == 0.0


def test_regbn_lowers_what_it_is_meant_to_lower() -> None:
    """f' of the training fit is less predictable from g than f, where g explains part of f."""
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(256, 6, generator=generator)
    f = 0.2 * g @ torch.randn(6, 8, generator=generator) + 0.1 * torch.randn(256, 8, generator=generator)
    f_out, g_out = RegBN(8, 6, constraint="frobenius")(f, g)
    before, after = dependence(f, g), dependence(f_out, g_out)
    assert after.explained_variance < before.explained_variance
    assert after.linear_cka < before.linear_cka


@pytest.mark.parametrize(("b_f", "b_g"), [(8, 9), (4, 4)])
def test_batches_that_do_not_fit(b_f: int, b_g: int) -> None:
    with pytest.raises(RegBNShapeError, match="at least 8 samples"):
        dependence(torch.randn(b_f, 3), torch.randn(b_g, 3))


def test_values_that_are_not_finite() -> None:
    with pytest.raises(RegBNShapeError, match="f contains NaN"):
        dependence(torch.full((8, 3), float("nan")), torch.randn(8, 3))


@pytest.mark.parametrize("shared", [0, 1, 3, 6])
@pytest.mark.parametrize("width", [8, 200])
def test_shared_directions_are_counted(shared: int, width: int) -> None:
    """With fewer features than samples and with more."""
    generator = torch.Generator().manual_seed(shared)
    factors = torch.randn(400, shared, generator=generator)
    f, g = (
        3 * factors @ torch.randn(shared, width, generator=generator) / width**0.5
        + 0.3 * torch.randn(400, width, generator=generator) / width**0.5
        for _ in range(2)
    )
    assert dependence(f, g).shared_directions == shared
