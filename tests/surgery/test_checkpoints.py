"""Hosts that checkpoint a part of their own forward go on doing so; with RegBN in that part, gradients are right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regbn_surgery import RewriteError

from .models import build, counting, forced, operate, operate_by, vectors


class Parts(nn.Module):
    """Two encoders and their sum; each of these parts may be checkpointed."""

    def __init__(self, around: str, how: Callable[..., Any] | None) -> None:
        super().__init__()
        self.enc_a, self.enc_b, self.head = nn.Linear(6, 4), nn.Linear(5, 4), nn.Linear(4, 3)
        self.around, self.how = around, how

    def fuse(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x + y)

    def part(self, name: str, *args: Tensor) -> Tensor:
        part = getattr(self, name)
        if self.around != name or self.how is None:
            return part(*args)
        return self.how(part, *args)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.part("fuse", self.part("enc_a", a), self.part("enc_b", b)))


def reentrant(part: Any, *args: Tensor) -> Any:
    return checkpoint(part, *(x if x.requires_grad else x.clone().requires_grad_() for x in args), use_reentrant=True)


def without_reentry(part: Any, *args: Tensor) -> Any:
    return checkpoint(part, *args, use_reentrant=False)


def saved_elsewhere(part: Any, *args: Tensor) -> Any:
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        return part(*args)


WAYS = [reentrant, without_reentry, saved_elsewhere]


def after_a_step(model: Any) -> tuple[dict[str, Tensor], dict[str, int], dict[str, Tensor]]:
    """Gradients, how often each encoder ran, and the state."""
    model = copy.deepcopy(model).train()
    runs = {"enc_a": 0, "enc_b": 0}
    for name in runs:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: runs.update({name: runs[name] + 1}))
    model(**vectors(6)).square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, runs, model.state_dict()


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("around", ["enc_a", "fuse"])
def test_gradients_and_state_are_those_without_a_checkpoint(around: str, how: Callable[..., Any]) -> None:
    plain = operate(build(Parts, around, None), vectors(), "sum", regbn={"affine": True})
    rewritten = operate(build(Parts, around, how), vectors(), "sum", regbn={"affine": True})
    rewritten.load_state_dict(plain.state_dict())
    for found, expected in zip(after_a_step(rewritten)[::2], after_a_step(plain)[::2], strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("way", ["source", "mode"])
@pytest.mark.parametrize("how", WAYS)
def test_a_checkpoint_around_an_encoder_stays_one(how: Callable[..., Any], way: str) -> None:
    if way == "source" and how is without_reentry and torch.__version__ < "2.13":
        pytest.skip("torch keeps the arguments of such a checkpoint in another way: it goes by a mode")
    original = build(Parts, "enc_a", how)
    rewritten = operate_by(way, original, vectors(), "sum")
    assert after_a_step(rewritten)[1] == after_a_step(original)[1], "encoders run as often as in the original"


@pytest.mark.parametrize("how", [reentrant, without_reentry])
def test_under_a_mode_regbn_in_a_checkpoint_is_refused(how: Callable[..., Any]) -> None:
    model = build(Parts, "fuse", how)
    with (
        forced("mode"),
        pytest.raises(RewriteError, match=r"in a checkpointed part of Parts.forward.*Checkpoint the layers"),
    ):
        operate(model, vectors(), "sum")


def test_under_a_mode_a_checkpoint_elsewhere_is_not_refused() -> None:
    rewritten = operate_by("mode", build(Parts, "enc_a", without_reentry), vectors(), "sum")
    with counting(rewritten) as calls:
        rewritten(**vectors())
    assert sum(calls.values()) == 1
