"""Interrupts the package at random moments and at lines of it, and compares torch before and after.

`python -m tests.cases._interrupting moments regbnify 400`: a process of its own, since what goes wrong here stays wrong
for the process. Any difference is an AssertionError.
"""

from __future__ import annotations

import copy
import gc
import random
import signal
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._functorch.apis
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import regbnify

from ._models import rule, watched

PACKAGE = str(Path(regbn_surgery.__file__).parent)
#: Whose attributes must be the very same objects afterwards.
OWNERS: list[Any] = [
    nn.Module, nn.Linear, nn.Sequential, Tensor, nn.Parameter, torch, torch.nn.functional, torch.autocast,
    torch.amp.autocast_mode, torch.autograd.Function, torch.autograd.graph.saved_tensors_hooks, torch.func,
    torch._functorch.apis, torch.overrides, torch.utils.checkpoint, torch.random, torch.compiler, random, copy,
]  # fmt: skip


class M(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb, self.head = nn.Linear(5, 8), nn.Linear(7, 8), nn.Linear(16, 3)

    def forward(self, a: Tensor, b: Tensor, k: float = 1.0) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            result: Tensor = self.head(torch.cat([self.fa(a) * k, self.fb(b)], 1))
        return result


X = torch.randn(8, 5), torch.randn(8, 7)
RULES = rule()


def rewrite() -> nn.Module:
    return regbnify(M(), RULES, X)


def rewriting() -> Callable[[], Any]:
    """Return a rewrite of a model that exists: torch's own initialisation leaves gradients off if it is interrupted."""
    model = M()
    return lambda: regbnify(model, RULES, X)


def first_call() -> Callable[[], Any]:
    """Return the first call of its kind of a fresh copy: another scale and batch than the example's."""
    model = copy.deepcopy(_rewritten()).train(random.random() < 0.5)
    size, k = random.randint(2, 8), random.random()
    return lambda: model(X[0][:size], X[1][:size], k=k)


_kept: list[nn.Module] = []


def _rewritten() -> nn.Module:
    if not _kept:
        _kept.append(rewrite())
    return _kept[0]


def things_as_they_are() -> dict[tuple[int, str], Any]:
    """Return every attribute of the owners, and the modes of torch."""
    values = {(number, name): value for number, owner in enumerate(OWNERS) for name, value in vars(owner).items()}
    modes = {
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    return values | {(-1, name): value for name, value in modes.items()}


def assert_as_they_were(before: dict[tuple[int, str], Any]) -> None:
    after = things_as_they_are()
    other = [
        key
        for key in before.keys() | after.keys()
        if before.get(key) is not after.get(key) and not (key[0] == -1 and before[key] == after[key])
    ]
    names = [f"{getattr(OWNERS[n], '__name__', n) if n >= 0 else 'mode'}.{name}" for n, name in other]
    names = [name for name in names if not _loaded_lately(name, after)]
    assert not names, f"left changed: {names}"


def _loaded_lately(name: str, after: dict[tuple[int, str], Any]) -> bool:
    """Submodules that were imported meanwhile are attributes of their package."""
    last = name.rsplit(".", 1)[-1]
    return last in ("__warningregistry__", "__annotations__") or any(
        isinstance(value, types.ModuleType) for key, value in after.items() if key[1] == last
    )


def interrupted(work: Callable[[], Any], seconds: float) -> bool:
    """Do some work and interrupt it after a time."""
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    return False


def assert_usable() -> None:
    """Models of torch and of this package work in this process."""
    layer = nn.Linear(2, 2)
    layer.name = "any"
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.weight.grad is not None
    model = rewrite().train()
    with watched(model) as runs:
        model(*X, k=random.random()).sum().backward()
    assert len(runs) == 1


def at_moments(what: str, count: int) -> None:
    def work() -> Callable[[], Any]:
        return rewriting() if what == "regbnify" else first_call()

    work()()
    started = time.perf_counter()
    work()()
    lasts = time.perf_counter() - started
    gc.collect()
    before = things_as_they_are()
    hits = 0
    for _ in range(count):
        doing = work()
        hits += interrupted(doing, random.uniform(lasts / 100, lasts))
        assert_as_they_were(before)
    assert hits, "no interrupt came in time"
    assert_usable()


class AtLine:
    """Raises KeyboardInterrupt at the n-th line of the package that a thread comes by; counts them otherwise."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.seen = at, 0

    def __enter__(self) -> AtLine:
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _called(self, frame: Any, event: str, _: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            self.seen += 1
            if self.seen == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


def at_lines(what: str, count: int) -> None:
    def work() -> Callable[[], Any]:
        return rewriting() if what == "regbnify" else first_call()

    work()()
    doing = work()
    with AtLine() as counted:
        doing()
    before = things_as_they_are()
    for _ in range(count):
        doing = work()
        line = AtLine(random.randint(1, counted.seen))
        try:
            with line:
                doing()
        except KeyboardInterrupt:
            pass
        assert_as_they_were(before)
    assert_usable()


def in_a_model(what: str, count: int) -> None:
    """After an interrupt a model computes what it did, and a second regbnify is possible where none was done."""
    inplace = what == "inplace"
    with AtLine() as counted:
        regbnify(M(), RULES, X, inplace=inplace)
    for _ in range(count):
        model = M()
        expected, keys = model.eval()(*X), list(model.state_dict())
        try:
            with AtLine(random.randint(1, counted.seen)):
                regbnify(model, RULES, X, inplace=inplace)
        except KeyboardInterrupt:
            pass
        if list(model.state_dict()) == keys:
            torch.testing.assert_close(model.eval()(*X), expected)
            assert type(model) is M
            assert not model._forward_hooks
            assert not model._forward_pre_hooks
            with watched(made := regbnify(model, RULES, X, inplace=inplace)) as runs:
                made(*X)
            assert len(runs) == 1


def main(where: str, what: str, count: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    random.seed(0)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    {"moments": at_moments, "lines": at_lines, "model": in_a_model}[where](what, int(count))


if __name__ == "__main__":
    main(*sys.argv[1:])
