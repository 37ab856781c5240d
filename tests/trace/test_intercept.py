"""Module calls are caught in the thread that listens, and nowhere else; afterwards everything is as it was."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from regbn_surgery._trace import capture, intercepted, intercepting
from regbn_surgery._trace._intercept import _listen

from .replay import captured, is_child, make, run_graph, same

ORIGINAL = nn.Module.__call__
AUTOCAST = torch.autocast.__enter__, torch.autocast.__exit__


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    def on_call(self, call: Any, module: Any, args: Any, kwargs: Any) -> Any:
        self.calls += 1
        return call(module, *args, **kwargs)


def assert_untouched(module: nn.Module, cls: type) -> None:
    assert nn.Module.__call__ is ORIGINAL
    assert (torch.autocast.__enter__, torch.autocast.__exit__) == AUTOCAST
    assert _get_current_function_mode_stack() == []
    assert type(module) is cls


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("strict", [False, True])
def test_patches_are_undone_when_the_forward_fails(error: type[BaseException], strict: bool) -> None:
    def fails(self: Any, a: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            raise error("on purpose")

    module = make(lambda self, a: self.inner(self.lin(a)), lin=nn.Linear(3, 3), inner=make(fails))
    cls = type(module)
    rule: dict[str, Any] = {"leaf": is_child, "strict": True, "forward": module.forward} if strict else {}
    with pytest.raises(error):
        capture(module, (torch.ones(2, 3),), {}, **rule)
    assert_untouched(module, cls)
    assert not torch.is_autocast_enabled("cpu")


def test_a_leaf_that_fails_and_is_caught_does_not_stop_the_recording() -> None:
    class Failing(nn.Linear):
        def forward(self, a: Tensor) -> Tensor:
            raise ValueError("on purpose")

    def forward(self: Any, a: Tensor) -> Tensor:
        try:
            return self.bad(a)
        except ValueError:
            return a * 2

    module = make(forward, bad=Failing(3, 3))
    trace = captured(module, torch.ones(2, 3), strict=True)
    same(run_graph(module, trace, torch.ones(4, 3)), torch.full((4, 3), 2.0))


def test_captures_may_nest_and_the_inner_one_hears_its_calls() -> None:
    outer, inner, lin = Counting(), Counting(), nn.Linear(2, 2)
    with intercepting(outer):
        lin(torch.ones(1, 2))
        with intercepting(inner):
            lin(torch.ones(1, 2))
        lin(torch.ones(1, 2))
    assert (outer.calls, inner.calls) == (2, 1)
    assert_untouched(lin, nn.Linear)


def test_two_threads_capture_at_once_and_each_gets_its_own_graph() -> None:
    barrier = threading.Barrier(2, timeout=600)
    found: dict[int, list[str]] = {}

    def forward(self: Any, a: Tensor) -> Tensor:
        for _ in range(self.times):
            barrier.wait()  # both are inside their forward at the same time
            a = self.lin(a)
            barrier.wait()
        return a.relu() if self.times == 3 else a

    def work(times: int) -> None:
        module = make(forward, lin=nn.Linear(3, 3), times=3)
        module.name = times
        trace = captured(module, torch.ones(2, 3))
        found[times] = [op.name for op in trace.calls]

    threads = [threading.Thread(target=work, args=(i,)) for i in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {i: ["Linear", "Linear", "Linear", "relu"] for i in (1, 2)}
    assert nn.Module.__call__ is ORIGINAL


def test_a_thread_that_trains_is_not_seen_by_one_that_captures() -> None:
    inside, trained = threading.Event(), threading.Event()
    losses: list[float] = []

    def forward(self: Any, a: Tensor) -> Tensor:
        inside.set()
        assert trained.wait(60)
        return self.lin(a)

    def train() -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        assert inside.wait(60)
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast("cpu", enabled=False):
                loss = model(torch.ones(5, 3)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        trained.set()

    thread = threading.Thread(target=train)
    thread.start()
    trace = captured(make(forward, lin=nn.Linear(3, 3)), torch.ones(2, 3))
    thread.join(60)
    assert [op.name for op in trace.calls] == ["Linear"]
    assert "autocast" not in trace.graph.python_code("self").src
    assert losses[-1] < losses[0]
    assert nn.Module.__call__ is ORIGINAL


def test_a_function_mode_of_the_users_stays_on_the_stack() -> None:
    class Counting(torch.overrides.TorchFunctionMode):
        seen = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Counting.seen += 1
            return func(*args, **(kwargs or {}))

    module = make(lambda self, a: self.lin(a) + 1, lin=nn.Linear(3, 3))
    with Counting() as mode:
        captured(module, torch.ones(2, 3))
        assert _get_current_function_mode_stack() == [mode]
    assert Counting.seen > 0


class Library:
    """Puts a `__call__` of its own over what stands there."""

    def __init__(self) -> None:
        self.calls = 0

    def install(self, wraps: bool) -> None:
        self.beneath = found = vars(nn.Module)["__call__"]

        def __call__(module: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            self.calls += 1
            return found(module, *args, **kwargs)

        self.own = functools.wraps(found)(__call__) if wraps else __call__
        nn.Module.__call__ = self.own  # type: ignore[method-assign]

    def remove(self) -> None:
        nn.Module.__call__ = self.beneath  # type: ignore[method-assign]


@pytest.fixture
def library() -> Iterator[Library]:
    yield Library()
    nn.Module.__call__ = ORIGINAL  # type: ignore[method-assign]


@pytest.mark.parametrize("wraps", [False, True])
def test_what_another_library_put_there_before_is_called_and_stays(library: Library, wraps: bool) -> None:
    library.install(wraps)
    counting, lin = Counting(), nn.Linear(2, 2)
    for times in (1, 2):
        intercepted(counting, lambda: lin(torch.ones(1, 2)))
        assert (counting.calls, library.calls) == (times, times)
    assert vars(nn.Module)["__call__"] is library.own
    library.remove()
    assert_untouched(lin, nn.Linear)


@pytest.mark.parametrize("wraps", [False, True])
def test_what_another_library_puts_there_meanwhile_stays(library: Library, wraps: bool) -> None:
    counting, lin = Counting(), nn.Linear(2, 2)

    def run() -> None:
        library.install(wraps)
        lin(torch.ones(1, 2))

    intercepted(counting, run)
    assert vars(nn.Module)["__call__"] is library.own
    assert (counting.calls, library.calls) == (1, 1)
    lin(torch.ones(1, 2))
    intercepted(counting, lambda: lin(torch.ones(1, 2)))
    assert (counting.calls, library.calls) == (2, 3)  # each call is heard of once
    assert vars(nn.Module)["__call__"] is library.own
    library.remove()  # puts back one of ours, which nobody uses any more
    lin(torch.ones(1, 2))
    assert counting.calls == 2
    intercepted(counting, lambda: lin(torch.ones(1, 2)))
    assert counting.calls == 3
    assert_untouched(lin, nn.Linear)


def test_another_thread_that_listens_keeps_ours_in_place() -> None:
    inside, done = threading.Event(), threading.Event()
    other, lin = Counting(), nn.Linear(2, 2)

    def listen() -> None:
        inside.set()
        assert done.wait(60)
        lin(torch.ones(1, 2))

    thread = threading.Thread(target=lambda: intercepted(other, listen))
    thread.start()
    assert inside.wait(60)
    own = Counting()
    intercepted(own, lambda: lin(torch.ones(1, 2)))
    lin(torch.ones(1, 2))
    done.set()
    thread.join(60)
    assert (own.calls, other.calls) == (1, 1)
    assert_untouched(lin, nn.Linear)


def test_a_thread_that_died_listening_does_not_keep_ours_in_place() -> None:
    thread = threading.Thread(target=_listen, args=(Counting(), object()))  # and never leaves
    thread.start()
    thread.join(60)
    lin = nn.Linear(2, 2)
    intercepted(Counting(), lambda: lin(torch.ones(1, 2)))
    assert_untouched(lin, nn.Linear)


def test_what_was_fetched_meanwhile_does_what_it_did() -> None:
    lin, function = nn.Linear(2, 2), torch.autograd.Function

    class Double(function):  # type: ignore[misc, valid-type]
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2 * grad

    def fetch() -> tuple[Any, ...]:
        return nn.Module.__call__, torch.is_autocast_enabled, Double.apply, torch.autocast.__enter__

    call, enabled, apply, _ = intercepted(Counting(), fetch)
    assert_untouched(lin, nn.Linear)
    assert call(lin, torch.ones(1, 2)).shape == (1, 2)
    assert enabled("cpu") is False
    assert apply(torch.ones(1)).item() == 2


IMPORTED_MEANWHILE = """
import torch
from torch import nn
from tests.trace.replay import captured, make

def forward(self, a):
    import torch._dynamo
    return self.lin(a)

def asks(a):
    return a + 1 if torch.is_autocast_enabled("cpu") else a * 2

captured(make(forward, lin=nn.Linear(2, 2)), torch.ones(1, 2))
found = torch.compile(asks, backend="eager", fullgraph=True)(torch.ones(1))
assert found.item() == 2
assert torch.get_autocast_dtype in torch._dynamo.variables.torch.constant_fold_functions
"""


def test_a_compiler_that_is_imported_meanwhile_knows_what_was_replaced() -> None:
    """It makes tables of torch's functions; what a listener puts in their place is gone when they are looked up."""
    run = subprocess.run([sys.executable, "-c", IMPORTED_MEANWHILE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
