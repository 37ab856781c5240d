"""An owner that is given the two branches as arguments: f and g are told apart however a call hands them over."""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from regbn_surgery import RegBN, explain, load_regbn, regbnify, save_regbn
from regbn_surgery._surgery._operands import placed

HEAD = """
import torch
from types import SimpleNamespace
from torch import nn

class Fuse(nn.Module):
    def forward(self, x, y):
        return torch.cat([x, y], 1)

class FuseDict(nn.Module):
    def forward(self, d):
        return torch.cat([d[name] for name in d], 1)

class FuseObject(nn.Module):
    def forward(self, pair):
        return torch.cat([pair.x, pair.y], 1)

class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.fa, self.fb, self.fuse = nn.Linear(5, 8), nn.Linear(7, 8), FUSE()

    def join(self, x, y, swap):
        return self.fuse(y, x) if swap else self.fuse(x, y)

    def forward(self, a, b, swap=False):
        f, g = torch.relu(self.fa(a)), self.fb(b)
        z = [g, f] if swap else [f, g]
"""
#: How the last lines of the forward call the owner, and which owner it is.
CALLS = {
    "a list with a star": ("Fuse", "return self.fuse(*z)"),
    "items by number": ("Fuse", "order = (0, 1)\n        return self.fuse(x=z[order[0]], y=z[order[1]])"),
    "names in a dict": ("Fuse", "return self.fuse(**dict(zip('xy', z)))"),
    "choices": ("Fuse", "return self.fuse(g if swap else f, f if swap else g)"),
    "two calls": ("Fuse", "return self.fuse(x=g, y=f) if swap else self.fuse(x=f, y=g)"),
    "exchanged names": ("Fuse", "if swap:\n            f, g = g, f\n        return self.fuse(f, g)"),
    "taken apart": ("Fuse", "x, y = z\n        return self.fuse(x, y)"),
    "a helper with two calls": ("Fuse", "return self.join(f, g, swap)"),
    "a dict": ("FuseDict", "return self.fuse({'one': z[len(z) - 2], 'two': z[len(z) - 1]})"),
    "an object": ("FuseObject", "return self.fuse(SimpleNamespace(x=g if swap else f, y=f if swap else g))"),
}
PLAIN = {
    "names": ("Fuse", "return self.fuse(f, g)"),
    "calls": ("Fuse", "return self.fuse(self.fa(a), self.fb(b))"),
    "the same call twice": ("Fuse", "return self.fuse(f, g) if swap else self.fuse(f, g)"),
    "a constant item": ("Fuse", "z = [f, g]\n        return self.fuse(z[0], z[1])"),
}
RULES = {"version": 1, "rules": [{"id": "r", "match": {"kind": "concat"}, "normalize": "a", "against": "b"}]}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Any]:
    """Make the class from a file, so that it can be saved."""
    names: list[str] = []

    def make(owner: str, call: str) -> Any:
        path = tmp_path / f"given_{len(names)}.py"
        path.write_text(HEAD.replace("FUSE", owner) + f"        {call}\n")
        module = types.ModuleType(path.stem)
        sys.modules[module.__name__] = module
        names.append(module.__name__)
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
        torch.manual_seed(0)
        return module.M

    yield make
    for name in names:
        del sys.modules[name]


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, 5, generator=generator), torch.randn(size, 7, generator=generator)


def assert_right(model: Any, plain: Any) -> None:
    """Hold calls of both orders to RegBN by hand before the owner is called."""
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "regbn" not in name})
    (regbn,) = (module for module in model.modules() if isinstance(module, RegBN))
    by_hand = copy.deepcopy(regbn)
    for train, swap, size in [(True, False, 6), (True, True, 6), (False, True, 3), (False, False, 3), (True, True, 9)]:
        a, b = batch(size)
        f, g = by_hand.train(train)(torch.relu(plain.fa(a)), plain.fb(b))
        torch.testing.assert_close(model.train(train)(a, b, swap=swap), torch.cat([g, f] if swap else [f, g], 1))
        torch.testing.assert_close(regbn.state_dict(), by_hand.state_dict())


@pytest.mark.parametrize("case", CALLS)
def test_f_and_g_are_known_by_what_made_them(case: str, made: Any, tmp_path: Path) -> None:
    cls = made(*CALLS[case])
    model = regbnify(cls(), RULES, batch())
    assert_right(model, cls())
    assert_right(copy.deepcopy(model), cls())
    save_regbn(model, tmp_path / "checkpoint")
    assert_right(load_regbn(cls(), tmp_path / "checkpoint"), cls())


def test_an_example_in_the_other_order(made: Any) -> None:
    cls = made(*CALLS["a list with a star"])
    assert_right(regbnify(cls(), RULES, {"a": batch()[0], "b": batch()[1], "swap": True}), cls())


@pytest.mark.parametrize("case", PLAIN)
def test_a_call_that_cannot_exchange_them_is_served_by_a_hook(case: str, made: Any) -> None:
    (report,) = explain(regbnify(made(*PLAIN[case])(), RULES, batch())).hosts
    assert report.way == "hook"


def test_a_branch_that_another_line_makes_goes_by_its_name(made: Any) -> None:
    cls = made("Fuse", "z = [torch.tanh(self.fa(a)) if swap else f, g]\n        return self.fuse(*z)")
    model = regbnify(cls(), RULES, batch()).eval()
    for swap in (False, True):
        f, g = torch.tanh(model.fa(batch()[0])) if swap else torch.relu(model.fa(batch()[0])), model.fb(batch()[1])
        torch.testing.assert_close(model(*batch(), swap=swap), torch.cat(model.fuse.regbn_r(f, g), 1))


def test_sides_by_name_where_they_are_not_known() -> None:
    f, g, other = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    assert placed(f, g, [g, f], (0, 1)) == (f, g)
    assert placed(None, None, [f, g], (1, 0)) == (g, f)
    assert placed(f, None, [f, other], (0, 1)) == (f, other)
    assert placed(f, None, [other, f], (0, 1)) == (f, other)
    assert placed(None, g, [g, other], (0, 1)) == (other, g)
    assert placed(None, g, [other, g], (0, 1)) == (other, g)
    assert placed(f, g, [f], (0, 1)) == (f, g)
