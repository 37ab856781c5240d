"""Forwards that run as they are, under a function mode: where a place has no expression, or no source is at hand."""

from __future__ import annotations

import copy
import functools
import itertools
import operator
import pickle
import re
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regbn_surgery._surgery import explain, identity
from regbn_surgery._surgery._leaving import leaving

from .models import build, counting, operate, operate_by, run, site_of, step, vectors, ways


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b, self.head = nn.Linear(6, 8), nn.Linear(5, 8), nn.Linear(8, 3)


def by_hand(model: Any, given: dict[str, Tensor]) -> Tensor:
    f, g = site_of(model).regbn(model.enc_a(given["a"]), model.enc_b(given["b"]))
    return model.head(f + g)


# -- where no expression serves ---------------------------------------------------------------------------------------


class Accumulated(Two):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        *_, total = itertools.accumulate([self.enc_a(a), self.enc_b(b)])
        return self.head(total)


class Mapped(Two):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        (total,) = map(torch.add, [self.enc_a(a)], [self.enc_b(b)])
        return self.head(total)


class Starred(Two):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        (total,) = itertools.starmap(operator.add, [(self.enc_a(a), self.enc_b(b))])
        return self.head(total)


TABLES: dict[str, list[Callable[[Tensor, Tensor], Tensor]]] = {"fusions": [lambda f, g: f * g, lambda f, g: f + g]}


class InATable(Two):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(TABLES["fusions"][1](self.enc_a(a), self.enc_b(b)))


class Kept:
    """A decorator that keeps the function in a way of its own."""

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __get__(self, host: Any, owner: Any = None) -> Any:
        return self if host is None else functools.partial(self.function, host)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class BehindAnObject(Two):
    @Kept
    def fuse(self, f: Tensor, g: Tensor) -> Tensor:
        return f + g

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.fuse(self.enc_a(a), self.enc_b(b)))


def without_source() -> type[nn.Module]:
    text = "def forward(self, a, b):\n    return self.head(self.enc_a(a) + self.enc_b(b))\n"
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(text, "<typed here>", "exec"), names)
    return type("Typed", (Two,), {"forward": names["forward"]})


CASES: dict[str, tuple[Callable[[], type[nn.Module]], str]] = {
    "accumulate": (lambda: Accumulated, "."),
    "map": (lambda: Mapped, "."),
    "starmap": (lambda: Starred, "."),
    "a lambda deep in data": (lambda: InATable, "cannot be found by its name"),
    "no source": (without_source, r"the source of .*forward is not available \(<typed here>\)"),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_without_an_expression_the_forward_runs_under_a_mode(case: str, training: bool) -> None:
    make, reason = CASES[case]
    plain = build(make())
    rewritten = operate(plain, vectors(), "sum")
    (report,) = explain(rewritten)
    assert (report.way, report.tier) == ("mode", 3)
    assert re.search(reason, report.reason), report.reason
    step(rewritten, vectors(9))
    twin = copy.deepcopy(rewritten).train(training)
    with counting(rewritten) as calls:
        found = run(rewritten, vectors(), training)
    assert dict(calls) == {"regbn_x": 1}
    torch.testing.assert_close(found, by_hand(twin, vectors()))
    plain.load_state_dict(rewritten.state_dict(), strict=False)
    with identity(rewritten):
        torch.testing.assert_close(run(rewritten, vectors(), training), run(plain, vectors(), training))


def test_a_function_that_a_decorator_keeps_is_still_reached() -> None:
    rewritten = operate(build(BehindAnObject), vectors(), "sum")
    step(rewritten, vectors(9))
    rewritten.eval()
    torch.testing.assert_close(rewritten(**vectors()), by_hand(rewritten, vectors()))


def test_copies_and_pickles_run_under_a_mode_too() -> None:
    rewritten = operate(build(Accumulated), vectors(), "sum")
    step(rewritten, vectors(9))
    expected = run(rewritten, vectors(), False)
    for other in (copy.deepcopy(rewritten), pickle.loads(pickle.dumps(rewritten))):
        assert ways(other) == {"mode"}
        with counting(other) as calls:
            torch.testing.assert_close(run(other, vectors(), False), expected)
        assert sum(calls.values()) == 1


# -- what the mode leaves alone ---------------------------------------------------------------------------------------


class Plain(Two):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.enc_a(a) + self.enc_b(b))


def is_clean() -> bool:
    stack = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return not stack and nn.Module.__call__.__module__.startswith("torch")


def test_nothing_is_left_behind_after_a_call_or_an_error() -> None:
    rewritten = operate_by("mode", build(Plain), vectors(), "sum")
    rewritten(**vectors())
    assert is_clean()

    def fail(*_: Any) -> None:
        assert not is_clean(), "the mode is on while the forward runs"
        raise ValueError("on purpose")

    handle = rewritten.enc_b.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="on purpose"):
        rewritten(**vectors())
    assert is_clean()
    handle.remove()
    with counting(rewritten) as calls:
        rewritten(**vectors())
    assert sum(calls.values()) == 1


class Says(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_modes_of_the_users_around_it_and_within_go_on() -> None:
    class Within(Two):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            with Says() as self.inner:
                total = self.enc_a(a) + self.enc_b(b)
            return self.head(total)

    rewritten = operate_by("mode", build(Within), vectors(), "sum")
    with counting(rewritten) as calls, Says() as outer:
        rewritten(**vectors())
    assert sum(calls.values()) == 1
    assert "add" in outer.names
    assert "add" in rewritten.inner.names


def test_other_threads_run_as_they_are_meanwhile() -> None:
    rewritten = operate_by("mode", build(Plain), vectors(), "sum").eval()
    stranger = build(Plain).eval()
    expected = stranger(**vectors(seed=3))
    found: list[Tensor] = []

    def meanwhile(*_: Any) -> None:
        thread = threading.Thread(target=lambda: found.append(stranger(**vectors(seed=3))))
        thread.start()
        thread.join(60)

    rewritten.enc_b.register_forward_pre_hook(meanwhile)
    with counting(rewritten) as calls:
        rewritten(**vectors())
    assert sum(calls.values()) == 1
    torch.testing.assert_close(found, [expected])


class Again(Two):
    """The same addition in a child, and once more in the host with other operands."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Plain()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        return self.head(f + g) + self.child(a, b) + self.head(f + f)


def test_only_the_hosts_own_call_counts() -> None:
    rewritten = operate_by("mode", build(Again), vectors(), "sum")
    with counting(rewritten) as calls:
        rewritten(**vectors())
    assert set(calls.values()) == {1}


def test_a_compiled_model_breaks_its_graph_there_and_computes_the_same() -> None:
    rewritten = operate_by("mode", build(Plain), vectors(), "sum")
    step(rewritten, vectors(9))
    rewritten.eval()
    expected = rewritten(**vectors())
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(rewritten, backend="eager")(**vectors()), expected)
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"_run_by_mode|disable"):
        torch.compile(rewritten, backend="eager", fullgraph=True)(**vectors())
    torch._dynamo.reset()


class Recursive(Two):
    """Its forward calls itself, and writes both sides into one tensor."""

    def forward(self, a: Tensor, b: Tensor, depth: int = 0) -> Tensor:
        if depth:
            return 2 * self.forward(a, b, depth - 1)
        joint = torch.zeros(len(a), 16)
        joint[:, :8] = self.enc_a(a) * 1.5  # made by operations, which the outer call would hear of, too
        joint[:, 8:] = self.enc_b(b) + 0.5
        return joint


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_forward_that_calls_itself_is_one_call(depth: int) -> None:
    # Without norms g' is the very g, by which the outer call would know the place again.
    rewritten = operate_by("mode", build(Recursive), vectors(), "scatter", regbn={"normalize_output": False}).eval()
    once = rewritten(**vectors())
    with counting(rewritten) as calls:
        found = rewritten(**vectors(), depth=depth)
    assert list(calls.values()) == [1]
    torch.testing.assert_close(found, 2**depth * once)


def test_who_leaves_a_mode_twice_is_out_of_it_until_the_outer_one_comes_back() -> None:
    mode = types.SimpleNamespace(inside=False)
    with leaving(mode):
        with leaving(mode):
            pass
        assert mode.inside
    assert not mode.inside
