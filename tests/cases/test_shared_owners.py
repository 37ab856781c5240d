"""A module that a model calls several times, in several roles: a call that is left out or added exchanges no others."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import Inputs, RegBNWarning, load_regbn, regbnify, save_regbn
from regbn_surgery._surgery import RegBNSite
from regbn_surgery._surgery._guard import ATTRIBUTE

RULES = {
    "version": 1,
    "rules": [{"id": "r", "match": {"kind": "concat", "owner": "fuse"}, "normalize": "a", "against": "b"}],
}


class Fuse(nn.Module):
    """`inside`: f and g are made here, so that RegBN goes into this forward; else they are its arguments."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.p, self.q = (nn.Linear(8, 8), nn.Linear(8, 8)) if inside else (nn.Identity(), nn.Identity())
        self.inside = inside

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([torch.relu(self.p(x)), self.q(y)] if self.inside else [x, y], 1)


class Shared(nn.Module):
    """`calls`: which calls a forward makes. `there` and `back` are the example's; `alone` is another."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.a, self.b, self.fuse = nn.Linear(5, 8), nn.Linear(7, 8), Fuse(inside)

    def forward(self, a: Tensor, b: Tensor, calls: tuple[str, ...] = ("there", "back")) -> Tensor:
        f, g, out = self.a(a), self.b(b), torch.zeros(len(a), 16)
        for call in calls:
            if call == "there":
                out = out + self.fuse(f, g)
            elif call == "back":
                out = out - (
                    self
                    .fuse(g, f)
                )  # fmt: skip
            else:
                out = out * self.fuse(f, f)
        return out


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, 5, generator=generator), torch.randn(size, 7, generator=generator)


def rewritten(inside: bool) -> nn.Module:
    torch.manual_seed(0)
    model = regbnify(Shared(inside), RULES, batch()).train()
    for number in range(4):
        model(*batch(8 + number))
    return model


def by_hand(model: Any, a: Tensor, b: Tensor, calls: tuple[str, ...]) -> Tensor:
    there, back = (module for module in model.fuse.children() if isinstance(module, RegBNSite))
    f, g, out = model.a(a), model.b(b), torch.zeros(len(a), 16)
    for call in calls:
        left, right = {"there": (f, g), "back": (g, f), "alone": (f, f)}[call]
        if model.fuse.inside:
            left, right = torch.relu(model.fuse.p(left)), model.fuse.q(right)
        if call == "there":
            left, right = there(left, right)
        elif call == "back":
            right, left = back(right, left)
        joined = torch.cat([left, right], 1)
        out = {"there": out + joined, "back": out - joined, "alone": out * joined}[call]
    return out


WAYS = [("there", "back"), ("back",), ("back", "there"), ("there", "there", "back"), ("alone", "back"), ()]
inside = pytest.mark.parametrize("inside", [False, True])


def _same(model: nn.Module, calls: tuple[str, ...], train: bool, size: int) -> None:
    model.train(train)
    hand = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegBNWarning)
        found = model(*batch(size), calls=calls)
    torch.testing.assert_close(found, by_hand(hand, *batch(size), calls))
    torch.testing.assert_close(model.state_dict(), hand.state_dict())


@inside
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("calls", WAYS, ids="-".join)
def test_each_call_has_the_regbn_of_its_expression(inside: bool, train: bool, calls: tuple[str, ...]) -> None:
    model = rewritten(inside)
    for size in (6, 3):
        _same(model, calls, train, size)


@inside
def test_an_expression_that_the_example_did_not_come_by_is_told_once(inside: bool) -> None:
    model = rewritten(inside)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            model(*batch(), calls=("alone",))
    words = "an expression that the example did not reach"
    assert sum(words in str(each.message) for each in told) == 1


@inside
def test_a_second_example_makes_it_known(inside: bool) -> None:
    torch.manual_seed(0)
    other = Inputs(*batch(5), calls=("alone", "back", "there"))
    model = regbnify(Shared(inside), RULES, [Inputs(*batch()), other])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        for calls in (("there", "alone"), ("alone", "back"), ("alone", "there", "back")):
            for train in (False, True):
                _same(model, calls, train, 5)


@inside
def test_the_expressions_go_along_into_a_checkpoint(inside: bool, tmp_path: Path) -> None:
    model = rewritten(inside)
    save_regbn(model, tmp_path)
    loaded = load_regbn(Shared(inside), tmp_path)
    copied = copy.deepcopy(model)
    for each in (loaded, copied):
        for calls in WAYS:
            _same(each, calls, False, 4)


def test_a_role_without_a_regbn_runs_as_it_did() -> None:
    torch.manual_seed(0)
    model = regbnify(Shared(True), RULES, batch()).eval()
    plain = Shared(True).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "regbn" not in name})
    model.fuse.__dict__[ATTRIBUTE].without("regbn_r_1")  # as folding one of the two does
    with torch.no_grad():
        torch.testing.assert_close(model(*batch(), calls=("back",)), plain(*batch(), calls=("back",)))
        assert not torch.equal(model(*batch(), calls=("there",)), plain(*batch(), calls=("there",)))
