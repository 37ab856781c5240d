"""Training loops that others have written: the Trainer of transformers, accelerate beneath it, Lightning."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regbn_surgery
from regbn_surgery import RewriteError, load_regbn, unregbnify

from ._subject import Subject, assert_regbn_learned, counting, outputs
from ._with_trainers import SITUATIONS, STEPS, _hf, _loss

pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def _no_accelerator_is_left() -> Iterator[None]:
    """accelerate keeps one state for the process, made by whoever comes first."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def parameters() -> list[Any]:
    fast, slow = ("hf_blip_captioning",), ("pmr", "hf_git", "hf_whisper")
    return [
        pytest.param(
            name,
            situation,
            marks=() if name in fast and situation != "Lightning" else pytest.mark.slow,
            id=f"{name}-{situation}",
        )
        for situation in SITUATIONS
        for name in (*fast, *slow)
    ]


@pytest.mark.parametrize(("name", "situation"), parameters())
def test_situation(name: str, situation: str) -> None:
    if situation == "Lightning":
        pytest.importorskip("lightning")
    SITUATIONS[situation](Subject(name))


@pytest.mark.parametrize("name", ["hf_git", "hf_blip_captioning"])
def test_accelerate_replaces_the_forward_on_the_instance(name: str) -> None:
    """Mixed precision does so: on a model whose root is the host (git), and on one that hooks deeper modules."""
    from accelerate import Accelerator

    subject = Subject(name)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    original = subject.rewritten().train()
    optimizer = torch.optim.SGD(original.parameters(), lr=1e-2)
    model, optimizer = accelerator.prepare(original, optimizer)
    assert "forward" in vars(model), "accelerate does it another way now"
    with counting(model) as calls:
        for step in range(3):
            loss = _loss(model, {"index": torch.tensor(step), "example": subject.example(4)})
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    assert set(calls.values()) == {3}
    assert_regbn_learned(model, 3)
    plain = accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # it leaves a bound method behind
    for copied in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        with counting(copied) as calls:
            found = outputs(copied.eval(), subject.example(3))
        assert set(calls.values()) == {1}
        torch.testing.assert_close(found, outputs(plain.eval(), subject.example(3)))
    restored, expected = unregbnify(plain), subject.original().eval()
    expected.load_state_dict(restored.state_dict())
    torch.testing.assert_close(outputs(restored.eval(), subject.example(3)), outputs(expected, subject.example(3)))


def test_surgery_after_accelerate_is_refused_with_the_order() -> None:
    from accelerate import Accelerator

    subject = Subject("hf_git")
    model: nn.Module = Accelerator(mixed_precision="bf16", cpu=True).prepare(subject.original())
    with pytest.raises(RewriteError, match="Put RegBN in first, and wrap the model afterwards"):
        regbn_surgery.regbnify(model, subject.case.rules_dict(), subject.case.example, inplace=True)


def test_a_checkpoint_of_the_trainer_holds_the_recipe(tmp_path: Path) -> None:
    subject = Subject("hf_blip_captioning")
    model = subject.rewritten()
    _hf(model, subject, STEPS, tmp_path)
    checkpoint = tmp_path / f"checkpoint-{STEPS}"
    cls: Any = type(subject.original())
    found = load_regbn(cls.from_pretrained(checkpoint), checkpoint)
    torch.testing.assert_close(
        outputs(found.eval(), subject.example(3)), outputs(model.eval(), subject.example(3)), rtol=0, atol=0
    )
