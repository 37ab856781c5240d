"""`diagnose` of a model that carries RegBN: measured as it is, and nothing of it changes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from regbn_surgery import AlreadyRewrittenError, InputsError, RewriteError, diagnose, regbnify
from regbn_surgery.nn import RegBN
from regbn_surgery.nn.baselines import NormsOnly
from tests.test_probe import RULES, Two, batches

PLAIN = {**RULES.to_dict(), "defaults": {"regbn": {"normalize_output": False, "constraint": "gcv", "momentum": 0.2}}}


def trained(steps: int = 60, **options: Any) -> nn.Module:
    model = regbnify(Two(), PLAIN, next(iter(batches(0.5))), **options)
    model.train()
    model.noise.eval()  # what it drops would be no part of what the batches share
    with torch.no_grad():
        for x, y in itertools.islice(batches(0.5, steps), steps):
            model(x, y)
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_a_trained_model_is_measured_before_and_after_its_own_regbn() -> None:
    model = trained()
    (regbn,) = (module for module in model.modules() if isinstance(module, RegBN))
    found = diagnose(model, batches(0.5), 12)
    (row,) = found.rows
    assert (row.site, row.f, row.g, found.as_it_is) == ("regbn_late", ("x",), ("y",), True)
    assert row.before.explained_variance > 0.4
    assert row.after is not None
    assert row.after.explained_variance < 0.1
    assert row.running_to_batch == pytest.approx(1, abs=0.2)
    # With half of its projection, evaluation removes half: what counts is the model's own, not a fit.
    with torch.no_grad():
        regbn.W.mul_(0.5)
    (half,) = diagnose(model, batches(0.5), 12).rows
    assert half.after is not None
    assert row.after.explained_variance + 0.05 < half.after.explained_variance < row.before.explained_variance
    assert half.running_to_batch == pytest.approx(row.running_to_batch / 2, rel=0.05)


def test_the_head_says_so() -> None:
    found = diagnose(trained(), batches(0.5), 12)
    head = str(found).partition("\n0 =")[0].replace("\n", " ")
    assert head.startswith("Two as it is, before and after its own RegBN in evaluation (nothing was fitted): how well")
    assert found.to_dict()["as_it_is"] is True
    assert "as it is" not in str(diagnose(Two(), batches(0.5), 12, RULES))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_model_changes(training: bool) -> None:
    model = trained().train(training)
    before, hooks = state(model), [len(module._forward_hooks) for module in model.modules()]
    first, again = diagnose(model, batches(0.5), 12), diagnose(model, batches(0.5), 12)
    assert first == again
    assert model.training is training
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)


class Parent(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Any) -> Any:
        return self.inner(*batch)


@pytest.mark.parametrize("wrap", [Parent, nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_inside_a_wrapper(wrap: Any) -> None:
    model = trained()
    assert diagnose(wrap(model), batches(0.5), 12) == diagnose(model, batches(0.5), 12)


def test_code_that_is_compiled_already_is_measured_too() -> None:
    model = trained()
    wanted = diagnose(model, batches(0.5), 12)
    model.compile(backend="eager")
    model.eval()
    model(*next(iter(batches(0.5))))
    assert diagnose(model, batches(0.5), 12) == wanted
    assert model._compiled_call_impl is not None


def test_several_inside_are_listed() -> None:
    with pytest.raises(RewriteError, match=r"`\.0` \(Two\), `\.1` \(Two\)"):
        diagnose(nn.ModuleList([trained(1), trained(1)]), batches(0.5), 12)


@pytest.mark.parametrize("more", [{"rules": RULES}, {"modalities": {"x": ["x"]}}])
@pytest.mark.parametrize("wrap", [lambda m: m, Parent])
def test_rules_are_for_a_model_without(wrap: Any, more: dict[str, Any]) -> None:
    with pytest.raises(AlreadyRewrittenError, match=r"regbn_late.*Measure it as it is, without rules") as told:
        diagnose(wrap(trained(1)), batches(0.5), 12, **more)
    assert "Several rules" not in str(told.value)


def test_one_that_was_never_trained_is_told() -> None:
    model = regbnify(Two(), PLAIN, next(iter(batches(0.5))))
    found = diagnose(model, batches(0.5), 12)
    assert any(note.startswith("RB309 `regbn_late`") for note in found.notes)
    assert not any(note.startswith(("RB303", "RB304")) for note in found.notes), "RB309 is the whole answer"
    (row,) = found.rows
    assert row.after == row.before
    assert not any(note.startswith("RB309") for note in diagnose(trained(), batches(0.5), 12).notes)


def test_another_module_in_the_place_of_regbn_is_measured() -> None:
    (row,) = diagnose(trained(make=NormsOnly.at), batches(0.5), 12).rows
    assert row.after is not None
    assert row.running_to_batch is None


@pytest.mark.parametrize("count", [next(iter(batches(0.5))), 0, -1, 2.5, None, "8", True])
def test_a_count_that_is_none(count: Any) -> None:
    for model in (Two(), trained(1)):
        with pytest.raises(InputsError, match=r"count says how many batches.*diagnose\(model, data, example=batch\)"):
            diagnose(model, batches(0.5), count)
