"""Holds the library to the hand-written truth of the zoo: points, sites, and a faithful, reversible surgery."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import regbn_surgery
from regbn_surgery._surgery import identity

from . import CASES, ZooCase, _compare
from ._case import Check
from ._running import call, copied, run, tensors_of, training_step

BY_NAME = {case.name: case for case in CASES}
Pair = tuple[torch.Tensor, torch.Tensor]
Answer = Callable[[Pair, Pair], Pair]
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


#: Cases whose truth about default modalities is plain: one input each, and the rest excluded by name or use. In
#: `diffusion_policy` the arm's own readings are called `agent_pos`, which is left out as positions are.
BY_DEFAULT = [
    case
    for case in CASES
    if all(len(inputs) == 1 for inputs in case.modalities.values())
    and (not case.name.startswith("hf_") or case.name in ("hf_flava", "hf_vilt", "hf_visual_bert", "hf_whisper"))
    and case.name != "diffusion_policy"
]


@pytest.mark.parametrize("case", BY_DEFAULT, ids=str)
def test_modalities_left_to_default(case: ZooCase) -> None:
    """Unnamed, every floating input and every input of token ids is a modality; masks, types and indices are not."""
    found = regbn_surgery.inspect(case.model(), case.example)
    assert sorted(m.inputs for m in found.modalities) == sorted(map(tuple, case.modalities.values()))
    assert len(found.fusion_points) == len(case.points)


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
    check_influence(case, rewritten)
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
    """Outputs are the original's with every site passed by, and with every RegBN called but returning what it got.

    The second shows that the tensors come back to the host as they lay there.
    """
    for (batch, train), outputs in expected.items():
        with identity(rewritten):
            found = run(rewritten, case.example(batch), train=train)
        torch.testing.assert_close(found, outputs, rtol=1e-5, atol=1e-6)
        names = _compare.regbns(rewritten)
        with returning(rewritten, dict.fromkeys(names, lambda got, made: got)) as calls:
            found = run(rewritten, case.example(batch), train=train)
        torch.testing.assert_close(found, outputs, rtol=1e-5, atol=1e-6)
        assert all(calls.values()), f"bypassed at batch {batch}, train={train}: {dict(calls)}"


def check_influence(case: ZooCase, rewritten: nn.Module) -> None:
    """What each RegBN returns is what the host goes on with: f' always, and g' where it is replaced too."""
    batch = case.batches[0]
    usual = run(rewritten, case.example(batch), train=False)
    for name, module in _compare.regbns(rewritten).items():
        for side in ("f", "g") if module.options.replace == "both" else ("f",):
            with returning(rewritten, {name: _noise_for(side)}):
                found = run(rewritten, case.example(batch), train=False)
            assert [out.shape for out in found] == [out.shape for out in usual]
            changed = any(not torch.equal(a, b) for a, b in zip(found, usual, strict=True))
            assert changed, f"{name}: the model does not depend on what RegBN makes of {side}"


def _noise_for(side: str) -> Answer:
    def answer(got: Pair, made: Pair) -> Pair:
        noise = [torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(1)) for x in made]
        return (noise[0], made[1]) if side == "f" else (made[0], noise[1])

    return answer


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
def returning(model: nn.Module, answers: Mapping[str, Answer]) -> Iterator[Counter[str]]:
    """Let the named RegBN modules return what `answers` say, given what they got and made; counts their calls.

    The hooks are closures: a deep copy of the model shares them, and so counts into the same place.
    """
    calls: Counter[str] = Counter(dict.fromkeys(answers, 0))

    def hook_for(name: str, answer: Answer) -> Callable[..., Pair]:
        def hook(module: nn.Module, got: tuple[Any, ...], made: Pair) -> Pair:
            calls[name] += 1
            return answer((got[0], got[1]), made)

        return hook

    handles = [
        model.get_submodule(name).register_forward_hook(hook_for(name, answer)) for name, answer in answers.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
