"""A model with RegBN computes the same in one thread, whatever another thread inspects, rewrites or captures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import RegBN, inspect, plan, regbnify
from regbn_surgery._trace import capture

RULES = {
    "version": 1,
    "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "a", "regbn": {"momentum": 0.5}}],
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb, self.head = nn.Linear(5, 8), nn.Linear(7, 6), nn.Linear(14, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.head(torch.cat([self.fa(a), self.fb(b)], 1))


X = torch.randn(16, 5), torch.randn(16, 7)


@pytest.fixture(scope="module")
def served() -> nn.Module:
    torch.manual_seed(0)
    model = regbnify(Model(), RULES, X).train()
    for _ in range(10):
        model(*X)
    return model.eval()


class Serving(threading.Thread):
    """Calls a model in evaluation until it is told to stop."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.stop, self.begun = model, threading.Event(), threading.Event()
        self.calls = self.wrong = 0
        self.error: Exception | None = None
        with torch.inference_mode():
            self.wanted = model(*X)

    def run(self) -> None:
        try:
            with torch.inference_mode():
                while not self.stop.is_set():
                    self.wrong += not torch.equal(self.model(*X), self.wanted)
                    self.calls += 1
                    self.begun.set()
        except Exception as error:
            self.error = error
            raise

    def check(self, meanwhile: Callable[[], Any]) -> None:
        self.start()
        try:
            assert self.begun.wait(60)
            before = self.calls
            while self.calls < before + 50:  # enough for the two threads to take turns
                meanwhile()
        finally:
            self.stop.set()
            self.join(60)
        assert self.error is None
        assert self.wrong == 0


@pytest.mark.parametrize("what", ["inspect", "plan", "copy", "inplace"])
def test_work_on_another_model(served: nn.Module, what: str) -> None:
    run: dict[str, Callable[[], Any]] = {
        "inspect": lambda: inspect(Model(), X),
        "plan": lambda: plan(Model(), RULES, X),
        "copy": lambda: regbnify(Model(), RULES, X),
        "inplace": lambda: regbnify(Model(), RULES, X, inplace=True),
    }
    Serving(served).check(run[what])


class ByHand(Model):
    """With RegBN in its code, so that nothing but the capture is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.regbn = RegBN(8, 6, momentum=0.5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat(self.regbn(self.fa(a), self.fb(b)), 1))


def test_a_capture_of_the_same_model() -> None:
    torch.manual_seed(0)
    model = ByHand().train()
    for _ in range(10):
        model(*X)
    model.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def trace() -> None:
        with torch.no_grad():
            capture(model, X, {})

    Serving(model).check(trace)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_thread_that_trains_moves_its_own_state_alone() -> None:
    """The running projection after ten steps is the same with and without somebody rewriting models meanwhile."""
    torch.manual_seed(0)
    models = [regbnify(Model(), RULES, X).train()]
    models.append(regbnify(Model(), RULES, X).train())
    models[1].load_state_dict(models[0].state_dict())

    def train(model: nn.Module) -> Tensor:
        for _ in range(10):
            model(*X).sum().backward()
        return next(module.W for module in model.modules() if isinstance(module, RegBN))

    alone, found = train(models[0]), []
    thread = threading.Thread(target=lambda: found.append(train(models[1])))
    thread.start()
    while thread.is_alive():
        regbnify(Model(), RULES, X)
    thread.join(60)
    assert torch.equal(found[0], alone)
    assert alone.abs().sum() > 0
