"""What the running state says of itself while it moves."""

from __future__ import annotations

import copy
import warnings
from typing import Literal

import pytest
import torch

from regbn_surgery import RegBN, RegBNWarning, regbnify


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


def test_batches_in_which_gcv_finds_nothing_are_no_sign_of_a_projection_that_is_too_large() -> None:
    """The projection of such a batch is nearly 0, and the running one fine."""
    torch.manual_seed(0)
    to_f = torch.randn(8, 16)
    for options in ({}, {"centre": True}, {"correct_start": True}, {"projection": "low_rank"}, {"step_size": "rms"}):
        module = RegBN(16, 8, constraint="gcv", **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RegBNWarning)
            for step in range(30):
                g = torch.randn(32, 8)
                module(g @ to_f if step % 3 or step < 9 else torch.randn(32, 16), g)
        lambdas = []
        for _ in range(30):
            module(torch.randn(32, 16), torch.randn(32, 8))
            lambdas.append(float(module.observed[1]))
        assert min(lambdas) < 1e-3 * float(torch.linalg.multi_dot([*module.factors, torch.eye(16)]).norm())
        with pytest.warns(
            RegBNWarning, match=r"RB413 RegBN \(8 features of g, 16 of f\) would subtract .* in evaluation"
        ):
            module(torch.randn(32, 16), 1e3 * torch.randn(32, 8))


def test_the_warning_names_the_regbn_of_a_rewritten_model() -> None:
    from ..test_statistics import RULES, Model, batch

    model = regbnify(Model(), RULES, batch(4)).train()
    model.t.bias.data.zero_()
    for again in (model, copy.deepcopy(model)):
        for _ in range(3):
            again(torch.randn(12, 8), 1e-6 * torch.randn(12, 5))
        with pytest.warns(RegBNWarning, match="RB413 RegBN `regbn_late` would subtract"):
            again(*batch())
    with pytest.warns(RegBNWarning, match="RB410 RegBN `regbn_late` was given"):
        model(torch.full((12, 8), torch.nan), torch.randn(12, 5))
