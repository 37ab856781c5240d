"""What a forward keeps and reads beside its tensors: objects of its own, of its children, and handed to it.

RegBN goes into the forward's own code, so that Python reads and writes all of it as it always did, in every way.
"""

from __future__ import annotations

import collections
import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regbn_surgery._surgery import identity

from .models import build, counting, operate, operate_by, vectors


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b, self.head = nn.Linear(6, 4), nn.Linear(5, 4), nn.Linear(8, 3)

    def joined(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1))


class Schedule:
    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return float(self.asked)


class Slotted:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def _deque(held: Any, joint: Tensor) -> float:
    held.append(float(len(held)))
    return 1.0 + sum(held)


def _counter(held: Any, joint: Tensor) -> float:
    held["calls"] += 1
    return float(held["calls"])


def _slotted(held: Any, joint: Tensor) -> float:
    held.count += 1
    return float(held.count)


def _array(held: Any, joint: Tensor) -> float:
    held += 1
    return float(held[0])


STATES: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], float]]] = {
    "deque": (lambda: collections.deque(maxlen=3), _deque),
    "Counter": (collections.Counter, _counter),
    "defaultdict": (lambda: collections.defaultdict(int), _counter),
    "OrderedDict": (lambda: collections.OrderedDict(calls=0), _counter),
    "array": (lambda: np.zeros(1), _array),
    "slots": (Slotted, _slotted),
    "callable": (Schedule, lambda held, joint: held()),
    "random.Random": (lambda: random.Random(3), lambda held, joint: held.random()),
    "numpy": (lambda: np.random.default_rng(3), lambda held, joint: float(held.random())),
}


class Keeps(Two):
    def __init__(self, state: str) -> None:
        super().__init__()
        self.held, self.use = STATES[state][0](), STATES[state][1]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        joint = self.joined(a, b)
        return joint * self.use(self.held, joint)


class Bank(nn.Module):
    """Holds something for others, and computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.scale = 1.0


class KeepsOnAChild(Two):
    def __init__(self) -> None:
        super().__init__()
        self.bank = Bank()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.bank.count += 1
        return self.joined(a, b) * self.bank.count


class LeavesANote(Two):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        joint = self.joined(a, b)
        self.head.seen = joint.detach()
        return joint


class KeepsTheTeacherInEvaluation(Two):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.BatchNorm1d(6)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.teacher.eval()
        return self.joined(a, b) + self.teacher(a).mean()


class MakesItsMemoryWhenItHasNone(Two):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        joint = self.joined(a, b)
        memory = self.memory if hasattr(self, "memory") else 0
        self.memory = joint.detach().mean(0)
        return joint + memory


class MakesItsBufferWhenItIsNone(Two):
    memory: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", None)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        joint = self.joined(a, b)
        if self.memory is None:
            self.memory = joint.detach().mean(0)
        return joint + self.memory


class WritesPastItsSetter(Two):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        vars(self)["count"] = vars(self).get("count", 0) + 1
        return self.joined(a, b) * vars(self)["count"]


def hold_to_the_original(plain: nn.Module, rewritten: nn.Module, calls: int = 4) -> None:
    with identity(rewritten):
        for training in (True, False):
            for seed in range(calls):
                expected = plain.train(training)(**vectors(seed=seed))
                torch.testing.assert_close(rewritten.train(training)(**vectors(seed=seed)), expected)
    with torch.no_grad(), counting(rewritten) as reached:
        rewritten(**vectors())
    assert sum(reached.values()) == 1


every_way = pytest.mark.parametrize("way", ["source", "mode"])


@every_way
@pytest.mark.parametrize("state", STATES)
def test_what_a_forward_keeps_goes_on(state: str, way: str) -> None:
    plain = build(Keeps, state)
    rewritten = operate_by(way, plain, vectors())
    hold_to_the_original(plain, rewritten)


@every_way
@pytest.mark.parametrize(
    "cls",
    [
        KeepsOnAChild,
        LeavesANote,
        KeepsTheTeacherInEvaluation,
        MakesItsMemoryWhenItHasNone,
        MakesItsBufferWhenItIsNone,
        WritesPastItsSetter,
    ],
)
def test_what_a_forward_keeps_somewhere_else_goes_on(cls: type[nn.Module], way: str) -> None:
    plain = build(cls)
    rewritten = operate_by(way, plain, vectors())
    hold_to_the_original(plain, rewritten)
    for name, module in plain.named_modules():
        other = rewritten.get_submodule(name)
        assert module.training == other.training
        for key in ("count", "seen", "memory", "running_mean"):
            expected = getattr(module, key, None)
            if isinstance(expected, Tensor):
                assert getattr(other, key).shape == expected.shape
            else:
                assert hasattr(module, key) == hasattr(other, key)


class ReadsAChild(Two):
    def __init__(self) -> None:
        super().__init__()
        self.bank = Bank()
        self.options = collections.OrderedDict(offset=0.0)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.joined(a, b) * self.bank.scale + self.options["offset"]


@every_way
def test_what_is_changed_from_outside_is_noticed_on_children_and_in_odd_containers(way: str) -> None:
    plain = build(ReadsAChild).eval()
    rewritten = operate_by(way, plain, vectors()).eval()
    for number in (1.0, 2.0, 0.5):
        for model in (plain, rewritten):
            model.bank.scale, model.options["offset"] = number, -number
        with torch.no_grad(), identity(rewritten):
            torch.testing.assert_close(rewritten(**vectors()), plain(**vectors()))


def test_nothing_stays_on_the_class_of_all_modules() -> None:
    before = dict(vars(nn.Module))
    operate(build(ReadsAChild), vectors())
    assert dict(vars(nn.Module)) == before


class Draws(Two):
    def forward(self, a: Tensor, b: Tensor, generator: Any = None) -> Tensor:
        joint = self.joined(a, b)
        return joint if generator is None else joint + torch.rand(joint.shape, generator=generator)


@every_way
def test_a_generator_that_is_handed_in_is_drawn_from_once_a_call(way: str) -> None:
    plain = build(Draws)
    rewritten = operate_by(way, plain, vectors())
    ours, theirs = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    with identity(rewritten):
        for _ in range(3):
            torch.testing.assert_close(rewritten(**vectors(), generator=ours), plain(**vectors(), generator=theirs))
            assert torch.equal(ours.get_state(), theirs.get_state())


class Notes:
    """An object like any other."""

    def __init__(self) -> None:
        self.calls = 0
        self.seen: Tensor | None = None


def _note(given: Any, joint: Tensor) -> float:
    given.calls, given.seen = given.calls + 1, joint.detach()
    return float(given.calls)


def _put(given: Any, joint: Tensor) -> float:
    given.append(float(len(given)))
    return 1.0 + sum(given)


GIVEN: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], float]]] = {
    "object": (Notes, _note),
    "deque": (lambda: collections.deque(maxlen=3), _put),
    "random.Random": (lambda: random.Random(3), lambda given, joint: given.random()),
    "numpy": (lambda: np.random.default_rng(3), lambda given, joint: float(given.random())),
    "iterator": (lambda: iter([0.5, 1.5, 2.5, 3.5]), lambda given, joint: next(given)),
}


class IsHanded(Two):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.use = GIVEN[kind][1]

    def forward(self, a: Tensor, b: Tensor, given: Any = None) -> Tensor:
        joint = self.joined(a, b)
        return joint if given is None else joint * self.use(given, joint)


@every_way
@pytest.mark.parametrize("kind", GIVEN)
def test_what_is_handed_in_and_written_or_read_on_goes_on(kind: str, way: str) -> None:
    plain = build(IsHanded, kind)
    rewritten = operate_by(way, plain, vectors())
    ours, theirs = GIVEN[kind][0](), GIVEN[kind][0]()
    with identity(rewritten):
        for seed in range(4):
            expected = plain(**vectors(seed=seed), given=theirs)
            torch.testing.assert_close(rewritten(**vectors(seed=seed), given=ours), expected)
    if kind == "object":
        assert ours.calls == 4
        assert torch.equal(ours.seen, theirs.seen)


@every_way
def test_what_can_be_gone_through_only_once_is_gone_through_by_the_call_alone(way: str) -> None:
    plain = build(IsHanded, "iterator")
    rewritten = operate_by(way, plain, vectors())
    ours, theirs = ((float(n) for n in range(1, 4)) for _ in range(2))
    with identity(rewritten):
        for _ in range(3):
            torch.testing.assert_close(rewritten(**vectors(), given=ours), plain(**vectors(), given=theirs))
    assert next(ours, None) is None


class AsksForTypes(Two):
    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        joint = self.joined(a, b)
        if self.question == "dtype":
            return joint, torch.full((3,), 0.3).to(joint.dtype)
        asked = torch.is_autocast_enabled("cpu") if self.question == "autocast" else torch.is_inference_mode_enabled()
        return joint * (2 if asked else 1), joint


@every_way
@pytest.mark.parametrize("question", ["dtype", "autocast", "inference"])
def test_what_type_of_numbers_it_is_called_with_is_noticed_where_the_forward_asks(question: str, way: str) -> None:
    plain = build(AsksForTypes, question).eval()
    rewritten = operate_by(way, plain, vectors()).eval()
    regions = [contextlib.nullcontext, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)]
    for region in regions * 2:
        with torch.no_grad(), region(), identity(rewritten):
            expected, found = plain(**vectors()), rewritten(**vectors())
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


class ReadsAList(Two):
    def __init__(self) -> None:
        super().__init__()
        self.memories = [torch.zeros(3)]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.joined(a, b) + self.memories[0]


def test_a_tensor_that_comes_by_the_id_of_another_is_told_from_it() -> None:
    plain = build(ReadsAList).eval()
    rewritten = operate(plain, vectors()).eval()
    with torch.no_grad(), identity(rewritten):
        for number in range(20):
            for model in (plain, rewritten):
                model.memories = []  # the memory of the old one may be taken by the new one
                model.memories = [torch.full((3,), float(number))]
            torch.testing.assert_close(rewritten(**vectors()), plain(**vectors()))
