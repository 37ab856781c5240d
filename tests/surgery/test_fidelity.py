"""With identity in place of RegBN a rewritten model is the original in everything a training script can see.

On every model of the zoo, at two batch sizes, in evaluation and training: outputs, gradients of every parameter,
buffers after the step, and how often each hook on a module of the user's fires.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import regbn_surgery
from regbn_surgery._surgery import identity
from regbn_surgery._surgery._reorder import without_dropout
from regbn_surgery._surgery._trials import reordered
from tests.zoo import CASES, ZooCase
from tests.zoo._running import SEED, call, copied, tensors_of

from .models import ways

#: One of each tier and kind stays in `make test`.
QUICK = {"masked_scatter", "index_assignment", "directional_transformer", "torch_decoder", "hf_blip2", "optional_input"}


def cases() -> Iterator[Any]:
    for case in CASES:
        reason = case.pending.get("surgery")
        marks = [] if case.name in QUICK else [pytest.mark.slow]
        marks += [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
        yield pytest.param(case, id=case.name, marks=marks)


@pytest.mark.parametrize("case", list(cases()))
def test_fidelity(case: ZooCase) -> None:
    original = case.model()
    rewritten = regbn_surgery.regbnify(original, case.rules_dict(), case.example)
    for batch in case.batches:
        for training in (False, True):
            ours, theirs = copied(rewritten), copied(original)
            if "graph" in ways(rewritten):  # a kind of call that is new is captured first
                with identity(ours):
                    _step(ours, case.example(batch), training, quiet=True)
                ours = _with_state_of(ours, rewritten)
            quiet = training and reordered(rewritten)
            with identity(ours):
                found = _step(ours, case.example(batch), training, quiet)
            expected = _step(theirs, case.example(batch), training, quiet)
            where = f"{case.name}, batch {batch}, {'training' if training else 'evaluation'}"
            _compare(found, expected, where)


def _with_state_of(model: nn.Module, other: nn.Module) -> nn.Module:
    """What `model` has learnt about kinds of calls, with the parameters and buffers of `other`."""
    model.load_state_dict(other.state_dict())
    return model


Seen = tuple[list[torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor], Counter[str]]


def _step(model: nn.Module, example: Any, training: bool, quiet: bool) -> Seen:
    """Outputs, gradients and buffers of one seeded step, and how often the hooks on the user's modules fired."""
    model.train(training)
    model.zero_grad(set_to_none=True)
    fired: Counter[str] = Counter()

    def fire(module: nn.Module, args: Any, output: Any, name: str) -> None:
        fired[name] += 1

    handles = [
        module.register_forward_hook(functools.partial(fire, name=name))
        for name, module in model.named_modules()
        if "regbn_" not in name and not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        with torch.random.fork_rng(), without_dropout(model) if quiet else contextlib.nullcontext():
            torch.manual_seed(SEED)
            outputs = list(tensors_of(call(model, example)))
            losses = [out.abs().square().mean().float() for out in outputs if out.requires_grad]
            if losses:
                torch.stack(losses).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and "regbn_" not in name}
    buffers = {name: b.clone() for name, b in model.named_buffers() if "regbn_" not in name}
    return outputs, gradients, buffers, fired


def _compare(found: Seen, expected: Seen, where: str) -> None:
    for what, ours, theirs in zip(("output", "gradient", "buffer"), found[:3], expected[:3], strict=True):
        if isinstance(theirs, dict):
            assert isinstance(ours, dict)
            assert sorted(ours) == sorted(theirs), f"{where}: another set of {what}s"
            ours, theirs = [ours[name] for name in sorted(theirs)], [theirs[name] for name in sorted(theirs)]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, w=what: f"{where}: {w}: {m}")
    assert found[3] == expected[3], f"{where}: hooks: {found[3] - expected[3]} more, {expected[3] - found[3]} less"
