"""What the running state says of itself while it moves."""

from __future__ import annotations

import warnings
from typing import Literal

import pytest
import torch

from regbn_surgery import RegBN, RegBNWarning


@pytest.mark.parametrize("fit", ["batch", "running"])
def test_a_projection_that_is_far_too_large_is_told_once(fit: Literal["batch", "running"]) -> None:
    """As with a pretrained encoder whose features hardly vary at first."""
    torch.manual_seed(0)
    module, f = RegBN(16, 8, fit=fit), torch.randn(32, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        for _ in range(3):
            module(f, 1e-6 * torch.randn(32, 8))
    with pytest.warns(RegBNWarning, match="RB413.*g hardly varied when W was fitted, or has grown since"):
        module(f, torch.randn(32, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        module(f, torch.randn(32, 8))


def test_usual_steps_say_nothing_of_sizes() -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        for scale in (1e-20, 1.0, 1e10):
            for options in ({}, {"constraint": "gcv"}, {"centre": True}, {"correct_start": True}, {"fit": "running"}):
                module = RegBN(16, 80, **options)
                for _ in range(20):
                    g = scale * (0.5 + torch.rand(())) * torch.randn(32, 80)
                    module(torch.randn(32, 16) + g[:, :16] / scale, g)
