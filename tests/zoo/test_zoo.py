"""Holds the library to the hand-written truth of the zoo: points, sites, and a faithful, reversible surgery."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import regbn_surgery
from regbn_surgery._rewrite import identity

from . import CASES, ZooCase, _compare
from ._case import Check
from ._running import call, copied, run, tensors_of, training_step

BY_NAME = {case.name: case for case in CASES}
Outputs = dict[tuple[int, bool], list[torch.Tensor]]  # of the original, by batch size and mode


def every_case(check: Check) -> pytest.MarkDecorator:
    """Parametrise over the zoo; a case that is pending for this check must fail, so that progress is noticed."""
    parameters = []
    for case in CASES:
        reason = case.pending.get(check)
        marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
        parameters.append(pytest.param(case, id=f"stage{case.stage}-{case.name}", marks=marks))
    return pytest.mark.parametrize("case", parameters)


@pytest.fixture(autouse=True)
def _grad_mode_is_restored() -> Iterator[None]:
    """A case that leaves gradients switched off must not take the others down with it."""
    with torch.enable_grad():
        yield


@functools.cache
def inspected(name: str) -> Any:
    case = BY_NAME[name]
    return regbn_surgery.inspect(case.model(), case.example, modalities=dict(case.modalities))


@every_case("points")
def test_fusion_points(case: ZooCase) -> None:
    difference = _compare.points(case, inspected(case.name))
    assert not difference, f"points {difference}"


@every_case("levels")
def test_levels(case: ZooCase) -> None:
    difference = _compare.levels(case, inspected(case.name))
    assert not difference, f"levels {difference}"


@every_case("sites")
def test_sites(case: ZooCase) -> None:
    difference = _compare.sites(case, inspected(case.name))
    assert not difference, f"sites {difference}"


@every_case("surgery")
def test_surgery(case: ZooCase) -> None:
    original = case.model()
    rewritten = regbn_surgery.regbnify(original, case.rules_dict(), case.example)
    assert isinstance(rewritten, type(original))
    assert all(parameter.is_leaf for parameter in rewritten.parameters()), "an optimizer would refuse the copy"
    difference = _compare.modules(case, rewritten)
    assert not difference, f"RegBN modules {difference}"
    check_state_dict(original, rewritten)
    expected = {
        (batch, train): run(original, case.example(batch), train=train)
        for batch in case.batches
        for train in (False, True)
    }
    check_identity(case, rewritten, expected)
    check_training(case, rewritten)
    check_reversal(case, original, rewritten, expected)


def check_state_dict(original: nn.Module, rewritten: nn.Module) -> None:
    """Every original entry is there, unchanged; every new one names RegBN; an old checkpoint loads."""
    before, after = original.state_dict(), rewritten.state_dict()
    assert before.keys() <= after.keys()
    torch.testing.assert_close({key: after[key] for key in before}, dict(before), rtol=0, atol=0)
    added = after.keys() - before.keys()
    assert added
    assert all("regbn_" in key for key in added)
    loaded = copied(rewritten).load_state_dict(before, strict=False)
    assert set(loaded.missing_keys) == added
    assert not loaded.unexpected_keys


def check_identity(case: ZooCase, rewritten: nn.Module, expected: Outputs) -> None:
    """With RegBN passing f and g through, outputs are the original's; live, every RegBN is called and changes them."""
    for (batch, train), outputs in expected.items():
        where = f"batch {batch}, train={train}"
        with identity(rewritten):
            found = run(rewritten, case.example(batch), train=train)
        torch.testing.assert_close(found, outputs, rtol=1e-5, atol=1e-6)
        with counting(rewritten) as calls:
            live = run(rewritten, case.example(batch), train=train)
        assert all(calls.values()), f"bypassed at {where}: {dict(calls)}"
        assert [out.shape for out in live] == [out.shape for out in outputs], where
        assert any(not torch.equal(a, b) for a, b in zip(live, outputs, strict=True)), where


def check_training(case: ZooCase, rewritten: nn.Module) -> None:
    """One training step fits every RegBN, and what comes out in evaluation afterwards is finite."""
    model = copied(rewritten)
    training_step(model, case.example(max(case.batches)))
    assert torch.is_grad_enabled(), "the forward left gradients switched off"
    untouched = _compare.regbns(rewritten)
    for name, module in _compare.regbns(model).items():
        assert module.W.isfinite().all(), name
        assert not torch.equal(module.W, untouched[name].W), f"{name}: W did not move"
    model.eval()
    outputs = list(tensors_of(call(model, case.example(2))))
    assert all(out.isfinite().all() for out in outputs if out.is_floating_point())


def check_reversal(case: ZooCase, original: nn.Module, rewritten: nn.Module, expected: Outputs) -> None:
    """`unregbnify` gives the class, the keys and the outputs of the original back."""
    restored = regbn_surgery.unregbnify(rewritten)
    assert [type(m) for m in restored.modules()] == [type(m) for m in original.modules()]
    assert list(restored.state_dict()) == list(original.state_dict())
    batch = case.batches[0]
    for train in (False, True):
        found = run(restored, case.example(batch), train=train)
        torch.testing.assert_close(found, expected[batch, train], rtol=0, atol=0)


@contextlib.contextmanager
def counting(model: nn.Module) -> Iterator[Counter[str]]:
    """How often each RegBN is called inside the block, by name; calls of copies made inside it count too."""
    calls: Counter[str] = Counter()
    handles = []
    for name, module in _compare.regbns(model).items():
        calls[name] = 0
        handles.append(module.register_forward_hook(_counter(calls, name)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _counter(calls: Counter[str], name: str) -> Callable[..., None]:
    """A hook as a closure: a deep copy of the model shares it, and so counts into the same place."""

    def hook(*_: Any) -> None:
        calls[name] += 1

    return hook
