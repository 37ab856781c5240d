"""What people do with a rewritten model afterwards: cast, compile, checkpoint, pickle, swap parts, run in threads."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import regbn_surgery
from regbn_surgery._surgery import identity

from ._faith import regbns
from .by_hand_values import Late

RULES = {"version": 1, "rules": [{"id": "r", "match": {"kind": "concat"}, "normalize": "a"}]}


class Plain(Late):
    def forward(self, a, b):
        return self.head(torch.cat([self.fa(a), self.fb(b)], 1))


class AsksForKind(Late):
    """Makes a tensor of the kind that its features are of."""

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        zero = torch.zeros(len(a), 1, dtype=f.dtype, device=f.device)
        return self.head(torch.cat([f + zero, g], 1))


class WithReduce(Plain):
    def __init__(self, n: int = 1) -> None:
        super().__init__()
        self.n = n

    def __reduce__(self):
        return WithReduce, (self.n,), self.__dict__


class WithState(Plain):
    def __getstate__(self):
        return {**self.__dict__, "extra": 1}

    def __setstate__(self, state):
        state.pop("extra")
        super().__setstate__(state)


@pytest.fixture
def example() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(4, 6), torch.randn(4, 5)


def pair(build: Callable[[], nn.Module], example: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    original = build()
    return original, regbn_surgery.regbnify(original, RULES, example)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_cast_afterwards(example: Any, dtype: torch.dtype) -> None:
    original, rewritten = pair(AsksForKind, example)
    rewritten(*example)
    original, rewritten = original.to(dtype), rewritten.to(dtype)
    inputs = [x.to(dtype) for x in example]
    rewritten(*inputs).float().sum().backward()
    with identity(rewritten):
        torch.testing.assert_close(rewritten(*inputs), original(*inputs))


def test_autocast_around(example: Any) -> None:
    original, rewritten = pair(AsksForKind, example)
    rewritten(*example)
    with torch.autocast("cpu", dtype=torch.bfloat16), identity(rewritten):
        torch.testing.assert_close(rewritten(*example), original(*example))


def test_first_seen_in_inference_mode(example: Any) -> None:
    _, rewritten = pair(AsksForKind, example)
    rewritten.eval()
    with torch.inference_mode():
        rewritten(torch.randn(9, 6), torch.randn(9, 5))
    rewritten.train()
    rewritten(torch.randn(9, 6), torch.randn(9, 5)).sum().backward()


def test_functional_call(example: Any) -> None:
    _, rewritten = pair(Plain, example)
    rewritten.eval()
    doubled = {name: 2 * p.detach() for name, p in rewritten.named_parameters()}
    loaded = copy.deepcopy(rewritten)
    loaded.load_state_dict({**loaded.state_dict(), **doubled})
    torch.testing.assert_close(torch.func.functional_call(rewritten, doubled, example), loaded(*example))


def test_a_child_is_replaced(example: Any) -> None:
    _, rewritten = pair(Plain, example)
    rewritten.head = nn.Linear(16, 7)
    assert rewritten(*example).shape == (4, 7)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_from_outside(example: Any, reentrant: bool) -> None:
    _, rewritten = pair(Plain, example)
    rewritten.train()
    inputs = [x.clone().requires_grad_() for x in example]
    checkpoint(rewritten, *inputs, use_reentrant=reentrant).sum().backward()
    assert all(p.grad is not None for p in rewritten.parameters())


def test_compiled_after_a_first_call(example: Any) -> None:
    _, rewritten = pair(Plain, example)
    rewritten.eval()
    expected = rewritten(*example)
    torch.testing.assert_close(torch.compile(rewritten, backend="eager", fullgraph=True)(*example), expected)


@pytest.mark.parametrize("build", [Plain, WithState, WithReduce])
@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_keep_regbn_on(example: Any, build: Any, way: Any) -> None:
    _, rewritten = pair(build, example)
    rewritten.train()
    rewritten(*example)
    again = way(rewritten).eval()
    torch.testing.assert_close(again(*example), rewritten.eval()(*example))
    assert regbns(again)


def test_two_threads_run_while_two_inspect(example: Any) -> None:
    _, rewritten = pair(Plain, example)
    rewritten.eval()
    expected = rewritten(*example)
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object], times: int) -> None:
        try:
            for _ in range(times):
                work()
        except BaseException as error:  # noqa: BLE001  handed to the main thread
            errors.append(error)

    def compare() -> None:
        torch.testing.assert_close(rewritten(*example), expected)

    works = [(compare, 20), (compare, 20)] + [(lambda: regbn_surgery.inspect(Plain(), example), 3)] * 2
    threads = [threading.Thread(target=guarded, args=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


def test_one_tensor_for_both_inputs(example: Any) -> None:
    """Tensors that were different when captured may be one object later."""

    class Same(Late):
        def __init__(self) -> None:
            super().__init__()
            self.fb = nn.Linear(6, 8)

        def forward(self, a, b):
            return self.head(torch.cat([self.fa(a), self.fb(b)], 1))

    _, rewritten = pair(Same, (example[0], torch.randn(4, 6)))
    rewritten.train()
    rewritten(torch.randn(9, 6), torch.randn(9, 6))
    rewritten.eval()
    torch.testing.assert_close(rewritten(example[0], example[0]), rewritten(example[0], example[0].clone()))


def test_under_somebody_elses_function_mode(example: Any) -> None:
    class Counting(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            Counting.calls += 1
            return func(*args, **(kwargs or {}))

    with Counting():
        _, rewritten = pair(Plain, example)
        rewritten(*example)
    assert Counting.calls


def test_in_place_twice_leaves_nothing(example: Any) -> None:
    model = Plain()
    keys = set(vars(model))
    for _ in range(2):
        assert regbn_surgery.regbnify(model, RULES, example, inplace=True) is model
        model.train()(*example)
        regbn_surgery.unregbnify(model)
        assert type(model) is Plain
        assert set(vars(model)) == keys


def test_a_pair_of_arguments_waits_for_its_turn() -> None:
    """Two of the three operands are arguments of the owner as they come; still the pairs go in order."""

    class Stacks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, x, y, z):
            return torch.stack([self.first(x), y, z], 1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.join = Stacks()

        def forward(self, a, b, c):
            return self.join(*(layer(v) for layer, v in zip(self.layers, (a, b, c), strict=True)))

    torch.manual_seed(0)
    original, example = Model(), tuple(torch.randn(8, 4) for _ in range(3))
    rules = {"version": 1, "rules": [{"id": "r", "match": {"kind": "concat"}, "pairs": "all"}]}
    rewritten = regbn_surgery.regbnify(original, rules, example).train()
    sites = copy.deepcopy(rewritten).join
    x, y, z = (layer(v) for layer, v in zip(original.layers, example, strict=True))
    x = original.join.first(x)
    x, y = sites.regbn_r(x, y)
    x, z = sites.regbn_r_1(x, z)
    y, z = sites.regbn_r_2(y, z)
    torch.testing.assert_close(rewritten(*example), torch.stack([x, y, z], 1))


def test_three_branches_are_normalised_in_sequence() -> None:
    """Every pair sees what the pairs before it made."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, a, b, c):
            x, y, z = (layer(v) for layer, v in zip(self.layers, (a, b, c), strict=True))
            return torch.cat([x, y, z], 1)

    torch.manual_seed(0)
    original, example = Three(), tuple(torch.randn(8, 4) for _ in range(3))
    rules = {"version": 1, "rules": [{"id": "r", "match": {"kind": "concat"}, "pairs": "all"}]}
    rewritten = regbn_surgery.regbnify(original, rules, example).train()
    sites = copy.deepcopy(rewritten)
    x, y, z = (layer(v) for layer, v in zip(original.layers, example, strict=True))
    x, y = sites.regbn_r(x, y)
    x, z = sites.regbn_r_1(x, z)
    y, z = sites.regbn_r_2(y, z)
    torch.testing.assert_close(rewritten(*example), torch.cat([x, y, z], 1))
