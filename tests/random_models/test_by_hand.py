"""Models as researchers write them: rewritten, trained with changing arguments, copied, pickled and restored."""

from __future__ import annotations

import pickle

import pytest
import torch

import regbn_surgery

from . import by_hand_classes, by_hand_state, by_hand_values  # noqa: F401
from ._by_hand import CASES, Case
from ._faith import assert_faithful, assert_restored, assert_same, assert_trains, regbns


def parameters() -> list[object]:
    return [
        pytest.param(case, id=case.name, marks=[pytest.mark.xfail(strict=True, reason=case.open)] if case.open else [])
        for case in CASES
    ]


@pytest.mark.parametrize("case", parameters())
def test_by_hand(case: Case) -> None:
    original = case.model()
    before = {key: value.clone() for key, value in original.state_dict().items()}
    rewritten = regbn_surgery.regbnify(original, case.rules(), case.example_inputs())
    for key, value in original.state_dict().items():
        assert_same(value, before[key], f"{key} changed by regbnify")
    assert isinstance(rewritten, type(original))
    assert regbns(rewritten)
    assert len(regbns(rewritten)) == case.points
    calls = case.calls(case.make)
    assert_faithful(original, rewritten, calls)
    assert_trains(rewritten, [call for call in calls if call.train])
    if case.pickles:
        assert_faithful(original, pickle.loads(pickle.dumps(rewritten)), calls[:4])
    regbn_surgery.unregbnify(rewritten)
    assert_restored(original, rewritten, calls[:3])
    assert torch.is_grad_enabled()
