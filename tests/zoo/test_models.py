"""The zoo's models run by themselves: a broken one must not look like a fault of the library."""

from __future__ import annotations

import pytest
import torch

from . import CASES, ZooCase
from ._running import run, training_step


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"stage{case.stage}-{case.name}")
def test_model_runs_and_trains(case: ZooCase) -> None:
    model = case.model()
    for batch in case.batches:
        for train in (False, True):
            first = run(model, case.example(batch), train=train)
            assert any(out.is_floating_point() for out in first)
            assert all(out.isfinite().all() for out in first if out.is_floating_point())
    again = run(model, case.example(batch), train=train)
    torch.testing.assert_close(first, again, rtol=0, atol=0)  # a seed settles everything
    training_step(model, case.example(max(case.batches)))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"stage{case.stage}-{case.name}")
def test_truth_is_consistent(case: ZooCase) -> None:
    """Every point lies in a module of the model, meets known modalities, and its sites pair homes that meet there."""
    model = case.model()
    names = set(case.modalities)
    assert case.normalize in names
    for point in case.points:
        model.get_submodule(point.owner)
        assert all(home <= names for home in point.meets)
        for site in point.sites:
            assert {site.f.home, site.g.home} <= point.meets
            assert site.reduce == "flatten" or not (site.f.layer_dim or site.g.layer_dim)
    assert case.expected_sizes(), "the rules of a case must put RegBN somewhere"
