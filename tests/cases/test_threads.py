"""What one thread does with the library changes nothing for calls that other threads make meanwhile."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import inspect, plan, regbnify, unregbnify

from ._models import Branches, batch, branches, rule, trained

WHERE = ["function", "method", "child", "value"]


@pytest.fixture(autouse=True)
def _threads_change_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def call_in_another_way(model: nn.Module) -> None:
    """Calls of new kinds: other orders, other sizes, with and without gradients."""
    for number, order in enumerate(["ba", "ab", "bac", "ac", "a"]):
        for size in (2, 3):
            model(*batch(size + number), order=order)
            with torch.inference_mode():
                model(*batch(size + number), order=order, others="ca")


def rewrite_another(model: nn.Module) -> None:
    for _ in range(3):
        unregbnify(regbnify(branches("cat", "function"), rule(), batch()))


def rewrite_one_of_the_same_class(model: nn.Module) -> None:
    for _ in range(3):
        other = regbnify(branches("cat", model.where), rule("concat", "b", "a"), batch())  # type: ignore[arg-type]
        other(*batch())


def look_at_another(model: nn.Module) -> None:
    for _ in range(3):
        inspect(branches("sum", "value"), batch())
        plan(branches("sum", "function"), rule("sum"), batch())


def copy_it(model: nn.Module) -> None:
    for number in range(5):
        copy.deepcopy(model)(*batch(3 + number))


def fail(model: nn.Module) -> None:
    for _ in range(5):
        with pytest.raises(Exception):  # noqa: B017, PT011  any error: wrong sizes of a call
            model(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3))


MEANWHILE: list[Callable[[nn.Module], None]] = [
    call_in_another_way, rewrite_another, rewrite_one_of_the_same_class, look_at_another, copy_it, fail,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("meanwhile", MEANWHILE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("where", WHERE)
def test_calls_in_other_threads(where: str, meanwhile: Callable[[nn.Module], None]) -> None:
    """Two threads serve a model in evaluation, while the main one does something else with it or another."""
    x = batch(16)
    model = trained(branches("cat", where), rule("concat", normalize_output=False), x, 5).eval()
    with torch.inference_mode():
        right = model(*x)[0]
    stop, wrong, calls = threading.Event(), [], [0]

    def serve() -> None:
        with torch.inference_mode():
            while not stop.is_set():
                try:
                    found = model(*x)[0]
                    if not torch.allclose(found, right, atol=1e-5):
                        wrong.append("another result")
                except Exception as error:  # noqa: BLE001  told by the main thread
                    wrong.append(f"{type(error).__name__}: {error}")
                calls[0] += 1

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        while not calls[0]:
            threading.Event().wait(0.001)
        meanwhile(model)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong, f"{len(wrong)} of {calls[0]} calls: {wrong[0]}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", WHERE)
def test_models_of_their_own(where: str) -> None:
    """Each thread trains its own copy, in an order of its own, and comes to what it comes to alone."""
    x = batch(8)
    models = [trained(branches("cat", where), rule(), x) for _ in range(4)]
    alone = [copy.deepcopy(model) for model in models]
    orders = ["ab", "ba", "abc", "ac"]
    for model, order in zip(alone, orders, strict=True):
        train(model, order)
    errors: list[BaseException] = []

    def work(model: nn.Module, order: str) -> None:
        try:
            train(model, order)
        except BaseException as error:  # noqa: BLE001  told by the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(models, orders, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    for model, expected in zip(models, alone, strict=True):
        torch.testing.assert_close(model.state_dict(), expected.state_dict())


def train(model: nn.Module, order: str) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for seed in range(6):
        optimizer.zero_grad()
        loss: Tensor = model(*batch(8, seed), order=order)[0].square().mean()
        loss.backward()
        optimizer.step()


def test_rewriting_in_threads() -> None:
    """Several threads rewrite models of one class at once."""
    results: list[Any] = []

    def work(normalize: str, against: str) -> None:
        try:
            model = regbnify(branches("cat", "function"), rule("concat", normalize, against), batch())
            results.append(model(*batch())[0].shape)
        except BaseException as error:  # noqa: BLE001  told by the main thread
            results.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in [("a", "b"), ("b", "a")] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [torch.Size([6, 3])] * 4, results
    assert type(branches("cat", "function")) is Branches
