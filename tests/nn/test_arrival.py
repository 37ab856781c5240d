"""What is said of the steps that the running projection needs."""

from __future__ import annotations

import pytest
import torch

from regbn_surgery import RegBN
from regbn_surgery.nn.start import arrived, momentum_for, too_few


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 60, 200, 5000])
def test_the_momentum_that_is_named_is_enough_and_not_much_more(steps: int) -> None:
    momentum = momentum_for(steps)
    assert arrived(steps, momentum) >= 0.9 - 1e-9
    assert arrived(steps, 0.88 * momentum) < 0.9
    assert too_few(steps, momentum) is None


def test_too_few_steps_are_told_with_both_remedies() -> None:
    told = too_few(20, 0.02)
    assert told is not None
    assert "at most 33% of its limit at momentum 0.02" in told
    assert "momentum: 0.11" in told
    assert "correct_start: true" in told


@pytest.mark.parametrize(("momentum", "steps"), [(0.02, 20), (0.02, 60), (0.1, 20)])
def test_the_formula_is_near_what_the_module_does_and_never_below(momentum: float, steps: int) -> None:
    """Noisy batches of one dependence: the part of the limit that W has in the direction of the limit."""
    torch.manual_seed(0)
    slope = torch.randn(6, 4)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        g = torch.randn(40, 6)
        return g @ slope + torch.randn(40, 4), g

    limit = torch.zeros(6, 4)
    for _ in range(200):
        fresh = RegBN(4, 6, momentum=1.0)
        fresh(*batch())
        limit += fresh.W / 200
    module = RegBN(4, 6, momentum=momentum)
    for _ in range(steps):
        module(*batch())
    found = float((module.W * limit).sum() / limit.square().sum())
    assert arrived(steps, momentum) - 0.15 < found < arrived(steps, momentum) + 0.02
