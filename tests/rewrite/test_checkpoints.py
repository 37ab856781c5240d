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
from regbn_surgery._rewrite import explain

from .models import build, counting, operate, vectors


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


class Reading(Parts):
    """Goes by a tensor's value, so that it has to run as it is."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return super().forward(a, b) if float(a[0, 0].detach()) < 1e9 else a


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


@pytest.mark.parametrize("how", WAYS)
def test_a_checkpoint_around_an_encoder_stays_one(how: Callable[..., Any]) -> None:
    original = build(Parts, "enc_a", how)
    rewritten = operate(original, vectors(), "sum")
    (report,) = explain(rewritten)
    assert (report.tier, "checkpoints a part of itself" in report.reason) == (3, True)
    assert after_a_step(rewritten)[1] == after_a_step(original)[1], "encoders run as often as in the original"


@pytest.mark.parametrize("how", [reentrant, without_reentry])
def test_a_host_that_runs_as_it_is_with_regbn_in_its_checkpoint_is_refused(how: Callable[..., Any]) -> None:
    with pytest.raises(
        RewriteError, match=r"part of Reading.forward that is checkpointed there.*Checkpoint the layers"
    ):
        operate(build(Reading, "fuse", how), vectors(), "sum")


def test_such_a_host_with_its_checkpoint_elsewhere_is_not() -> None:
    rewritten = operate(build(Reading, "enc_a", without_reentry), vectors(), "sum")
    with counting(rewritten) as calls:
        rewritten(**vectors())
    assert sum(calls.values()) == 1
