"""Directions in which g hardly varies: the documented equation holds for them, and what is rounding is left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regbn_surgery import RegBN

B, M, N = 64, 10, 12


def features(share: float) -> tuple[Tensor, Tensor, Tensor]:
    """f, g and the direction of g whose eigenvalue is `share` of the others'."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    sizes = torch.full((M,), 30.0, dtype=torch.float64)
    sizes[-1] *= share**0.5
    axes = torch.linalg.qr(drawn(M, M))[0]
    g = (torch.linalg.qr(drawn(B, M))[0] * sizes) @ axes.T
    return drawn(B, N).float(), g.float(), axes[:, -1]


def along(share: float, **options: Any) -> tuple[Tensor, Tensor]:
    """What W_batch and the documented equation, in float64 with the same lambda, have along that direction."""
    f, g, weak = features(share)
    regbn = RegBN(N, M, normalize_output=False, momentum=1.0, beta1=0.0, beta2=0.0, **options)
    regbn(f, g)
    f, g = f.double(), g.double()
    lam = float(regbn.multiplier)
    wanted = torch.linalg.solve(g.T @ g + lam * torch.eye(M, dtype=torch.float64), g.T @ f)
    return weak @ regbn.W.double(), weak @ wanted


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("share", [1e-4, 1e-6, 1e-7, 3e-8])
@pytest.mark.parametrize(
    "options", [{}, {"constraint": "fixed", "lam": 50.0, "lam_scale": "absolute"}, {"constraint": "fixed", "lam": 0.1}]
)
def test_a_weak_direction_is_fitted_as_the_equation_says(options: dict[str, Any], share: float, form: str) -> None:
    found, wanted = along(share, form=form, **options)
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=0.0)


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("options", [{}, {"constraint": "fixed", "lam": 0.0}])
def test_what_is_rounding_is_left_out(options: dict[str, Any], form: str) -> None:
    found, wanted = along(1e-11, form=form, **options)
    assert found.norm() < 0.05 * wanted.norm()
