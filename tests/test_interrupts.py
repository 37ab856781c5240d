"""Ctrl-C at any moment of a run leaves torch, the random numbers and the model as they were."""

from __future__ import annotations

import copy
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
import torch._functorch.apis
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import regbn_surgery
from regbn_surgery import inspect, plan, regbnify, unregbnify

PACKAGE = Path(regbn_surgery.__file__).parent
OWNERS = (nn.Module, torch.autocast, torch.autograd.Function, torch.autograd.graph.saved_tensors_hooks,
          torch._functorch.apis, torch.overrides.TorchFunctionMode)  # fmt: skip
RULES = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "a", "against": "b"}]}


class TwoBranches(nn.Module):
    """Uses everything that a trace listens to, and changes itself in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb = nn.Linear(5, 8), nn.Sequential(nn.Linear(7, 8), nn.BatchNorm1d(8))
        self.table, self.head = nn.Embedding(4, 8, max_norm=0.5), nn.Linear(16, 3)
        self.register_buffer("count", torch.zeros(()))
        self.calls, self.seen = 0, [1]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.count += 1
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            offset = self.table(torch.arange(len(a)) % 4)
        left, right = self.fa(a) + offset, self.fb(b)
        return self.head(torch.cat([torch.dropout(left, 0.1, self.training), right], 1))


def make() -> tuple[TwoBranches, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return TwoBranches(), (torch.randn(4, 5), torch.randn(4, 7))


def of_torch() -> dict[str, Any]:
    """All that a run could leave behind outside the model."""
    numbers: Any = np.random.get_state()
    return {
        "patched": [dict(vars(owner)) for owner in OWNERS],
        "questions": (torch.is_autocast_enabled, torch.get_autocast_dtype, torch.is_inference_mode_enabled),
        "modes": (_get_current_function_mode_stack(), _get_current_dispatch_mode_stack()),
        "functions": torch._C._get_torch_function_state(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "random": (torch.get_rng_state().tolist(), random.getstate(), numbers[1].tolist(), numbers[2]),
    }


def of_model(model: nn.Module) -> list[Any]:
    """Every attribute of every module by identity, what containers hold, and all values."""
    found: list[Any] = []
    for name, module in model.named_modules():
        found.append((name, type(module), module.training))
        for key, value in vars(module).items():
            content = list(value.items() if isinstance(value, dict) else value) if _is_container(value) else None
            found.append((key, id(value), [id(item) for pair in content for item in _pair(pair)] if content else None))
    return [*found, *((name, value.tolist()) for name, value in model.state_dict().items())]


def _is_container(value: Any) -> bool:
    return isinstance(value, dict | list | set)


def _pair(item: Any) -> tuple[Any, ...]:
    return (item[1],) if isinstance(item, tuple) else (item,)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)  # raises what Ctrl-C does
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def interrupted(run: Callable[[], Any], after: float) -> bool:
    """Whether the interrupt came before `run` had ended."""
    try:
        signal.setitimer(signal.ITIMER_REAL, after)
        run()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.parametrize("what", ["inspect", "plan", "copy", "inplace"])
def test_signals_at_random_moments(what: str, ctrl_c: None) -> None:
    model, x = make()
    runs: dict[str, Callable[[nn.Module], Any]] = {
        "inspect": lambda m: inspect(m, x),
        "plan": lambda m: plan(m, RULES, x),
        "copy": lambda m: regbnify(m, RULES, x),
        "inplace": lambda m: regbnify(m, RULES, x, inplace=True),
    }
    run = runs[what]
    run(copy.deepcopy(model))
    start = time.perf_counter()
    run(copy.deepcopy(model))
    duration = time.perf_counter() - start
    moments, hits = random.Random(what), 0
    torch_before = of_torch()
    for _ in range(300):
        if hits == 60:
            break
        subject = copy.deepcopy(model) if what == "inplace" else model
        before = of_model(subject)
        hit = interrupted(lambda subject=subject: run(subject), moments.uniform(1e-4, duration))  # type: ignore[misc]
        duration *= 1.1 if hit else 0.9  # a machine that was busy when it was measured may be idle now, and busy again
        if hit:
            hits += 1
            if what == "inplace" and of_model(subject) != before:
                unregbnify(subject)  # the interrupt came when all was done: the model is wholly rewritten, never half
            assert of_model(subject) == before
        assert of_torch() == torch_before
    assert hits == 60


class OneShot:
    """A trace function that raises once, at the n-th event of a kind in some of our files."""

    def __init__(self, files: frozenset[str], opcodes: bool) -> None:
        self.files, self.kind = files, "opcode" if opcodes else "line"
        self.events: dict[tuple[Any, int], int] = {}
        self.target: tuple[Any, int] | None = None
        self.visit = 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        frame.f_trace_opcodes = self.kind == "opcode"
        return self.local

    def local(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == self.kind:
            place = (frame.f_code, frame.f_lasti)
            self.events[place] = self.events.get(place, 0) + 1
            if place == self.target and self.events[place] == self.visit:
                self.target = None
                raise KeyboardInterrupt
        return self.local

    def run(self, run: Callable[[], Any], target: tuple[Any, int] | None = None, visit: int = 1) -> bool:
        self.events, self.target, self.visit = {}, target, visit
        before = sys.gettrace()
        sys.settrace(self)
        try:
            run()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


def files(*names: str) -> frozenset[str]:
    return frozenset(str(PACKAGE / name) for name in names)


GUARDS = files("_undo.py", "_thread_state.py", "_state.py", "_capture/_intercept.py", "_capture/_scopes.py",
               "_capture/_run.py")  # fmt: skip
ALL = frozenset(map(str, PACKAGE.rglob("*.py")))


@pytest.mark.parametrize(
    ("watched", "opcodes", "stride"),
    [(GUARDS, False, 3), (GUARDS, True, 30), (ALL, False, 40)],
    ids=("guards", "opcodes", "all"),
)
def test_an_interrupt_at_each_line(watched: frozenset[str], opcodes: bool, stride: int) -> None:
    model, x = make()
    shot = OneShot(watched, opcodes)

    def run() -> None:
        inspect(model, x)

    run()
    shot.run(run)
    places = [
        (place, visit) for place, count in shot.events.items() for visit in sorted({1, 2, count}) if visit <= count
    ]
    before, torch_before, hits = of_model(model), of_torch(), 0
    for place, visit in places[::stride]:
        hits += shot.run(run, place, visit)
        assert of_torch() == torch_before, (place, visit)
        assert of_model(model) == before, (place, visit)
    assert hits > 0.9 * len(places[::stride])
