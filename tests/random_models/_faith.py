"""Hold a rewritten model to its original over a whole sequence of calls: outputs, gradients and state.

With identity in place of RegBN the two must not be told apart by anything a training script can see. One call proves
little (a value baked into the graph is right for the value it was captured with), so calls come in sequences with
other values, sizes, modes and arguments.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from regbn_surgery import Inputs, RegBN
from regbn_surgery._surgery import identity


@dataclass(frozen=True)
class Call:
    """One call of a model: its arguments, the mode, and what the surroundings are set to."""

    inputs: Inputs
    train: bool = True
    seed: int = 0
    grad: bool = True


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in an output, through mappings, sequences and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from tensors_of(getattr(value, entry.name))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fixed random numbers inside, for torch and for Python."""
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            yield
    finally:
        random.setstate(state)


def copied(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        return copy.deepcopy(model)


def run(model: nn.Module, call: Call) -> tuple[Any, dict[str, torch.Tensor]]:
    """The output of one call, and the gradient of its mean square for every parameter."""
    model.train(call.train)
    model.zero_grad(set_to_none=True)
    args, kwargs = copy.deepcopy((call.inputs.args, call.inputs.kwargs))
    with seeded(call.seed), torch.set_grad_enabled(call.grad):
        output = model(*args, **kwargs)
        losses = [out.abs().square().mean() for out in tensors_of(output) if out.requires_grad]
        if losses:
            sum(loss.to(torch.float32) for loss in losses).backward()  # type: ignore[union-attr]
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output, grads


def assert_faithful(original: nn.Module, rewritten: nn.Module, calls: Sequence[Call]) -> None:
    """Both models get the same calls in turn, without being copied in between, and must stay equal throughout."""
    ours, theirs = copied(rewritten), copied(original)
    for i, call in enumerate(calls):
        with identity(ours):
            found, found_grads = run(ours, call)
        expected, expected_grads = run(theirs, call)
        where = f"call {i}, train={call.train}, {call.inputs!r}"
        assert_same(found, expected, f"output of {where}")
        names = sorted(expected_grads)
        assert [n for n in sorted(found_grads) if "regbn_" not in n] == names, f"other gradients: {where}"
        for name in names:
            assert_same(found_grads[name], expected_grads[name], f"gradient of {name}: {where}")
        state = ours.state_dict()
        for name, value in theirs.state_dict().items():
            assert_same(state[name], value, f"state {name} after {where}")
        assert torch.is_grad_enabled()


def assert_same(found: Any, expected: Any, where: str) -> None:
    ours, theirs = list(tensors_of(found)), list(tensors_of(expected))
    assert len(ours) == len(theirs), where
    if not isinstance(expected, torch.Tensor | tuple | list):
        assert type(found) is type(expected), where
    for a, b in zip(ours, theirs, strict=True):
        tolerance = (
            {} if not b.is_floating_point() else {"rtol": 2e-4, "atol": 1e-6 if b.dtype != torch.bfloat16 else 1e-2}
        )
        torch.testing.assert_close(a, b, **tolerance, msg=lambda m: f"{where}: {m}")


def regbns(model: nn.Module) -> dict[str, RegBN]:
    return {name: module for name, module in model.named_modules() if isinstance(module, RegBN)}


def assert_trains(rewritten: nn.Module, calls: Sequence[Call], lr: float = 1e-3) -> None:
    """A few steps with live RegBN: the projection of every site moves, and everything stays finite."""
    model = copied(rewritten)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    before = {name: module.W.detach().clone() for name, module in regbns(model).items()}
    assert before, "no RegBN went in"
    for call in calls:
        output, _ = run(model, call)
        optimizer.step()
        for out in tensors_of(output):
            assert not out.is_floating_point() or out.isfinite().all(), f"not finite: {call.inputs!r}"
    for name, module in regbns(model).items():
        assert module.W.isfinite().all(), name
        assert not torch.equal(module.W, before[name]), f"{name}: W did not move"


def assert_restored(original: nn.Module, restored: nn.Module, calls: Sequence[Call]) -> None:
    """After `unregbnify`: the same classes, keys and behaviour."""
    assert [type(m) for m in restored.modules()] == [type(m) for m in original.modules()]
    assert list(restored.state_dict()) == list(original.state_dict())
    assert_faithful(original, restored, calls)
