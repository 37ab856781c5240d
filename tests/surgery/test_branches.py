"""A side that one of several branches makes: known in the others where these make the same stream, else told."""

from __future__ import annotations

import copy
import linecache
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from regbn_surgery import RegBN, RegBNWarning, regbnify

HEAD = """
import torch
from torch import nn

class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.fa, self.fb, self.fc, self.more = nn.Linear(7, 8), nn.Linear(7, 8), nn.Linear(7, 8), nn.Linear(8, 8)

    def forward(self, a, b, way=0):
"""
#: The lines that make `f` and `g`, in the ways 0 and 1.
SAME: dict[str, str] = {
    "if": """
        if way:
            f = torch.tanh(self.more(self.fa(a)))
        else:
            f = torch.relu(self.fa(a))
        g = self.fb(b)
""",
    "choice": "        f, g = torch.tanh(self.fa(a)) if way else torch.relu(self.fa(a)), self.fb(b)\n",
    "refined": """
        f, g = self.fa(a), self.fb(b)
        if way:
            f = torch.tanh(self.more(f))
""",
    "not refined": """
        f, g = self.fa(a), self.fb(b)
        if not way:
            f = torch.tanh(self.more(f))
""",
    "match": """
        match way:
            case 0: f = self.fa(a).relu()
            case _: f = self.fa(a).tanh()
        g = self.fb(b)
""",
    "try": """
        try:
            if way:
                raise ValueError
            f = self.fa(a)
        except ValueError:
            f = self.fa(a * 2)
        g = self.fb(b)
""",
    "g by another layer": """
        f = self.fa(a)
        if way:
            g = self.fc(b)
        else:
            g = self.fb(b)
""",
    "parts of a batch": """
        batch = {"a": a, "b": b}
        if way:
            f = self.more(self.fa(batch["a"]))
        else:
            f = self.fa(batch["a"])
        g = self.fb(batch["b"])
""",
}
#: The same where way 1 makes another thing.
ANOTHER: dict[str, str] = {
    "exchanged": """
        if way:
            f, g = self.fb(b), self.fa(a)
        else:
            f, g = self.fa(a), self.fb(b)
""",
    "exchanged parts": """
        batch = {"a": a, "b": b}
        if way:
            f = self.fb(batch["b"])
        else:
            f = self.fa(batch["a"])
        y = self.fb(batch["b"])
        g = y.relu()
""",
    "exchanged and refined": """
        f, g = self.fa(a), self.fb(b)
        if way:
            f, g = g, f
            f = self.more(f)
            g = self.more(g)
""",
    "both in one": """
        g = self.fb(b)
        if way:
            f = self.fa(a) * torch.sigmoid(g)
        else:
            f = self.fa(a)
""",
    "nothing": """
        g = self.fb(b)
        if way:
            f = torch.zeros(len(b), 8)
        else:
            f = self.fa(a)
""",
}
JOIN = "        return torch.cat([f, g], 1)\n"
RULES = {"version": 1, "rules": [{"id": "r", "match": {"kind": "concat"}, "normalize": "a", "against": "b"}]}


@pytest.fixture
def made() -> Iterator[Any]:
    names: list[str] = []

    def make(body: str, hand: bool = False) -> Any:
        source = HEAD + body + ("        f, g = self.hand(f, g)\n" if hand else "") + JOIN
        name = f"branches_{len(names)}"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        module = types.ModuleType(name)
        sys.modules[name] = module
        names.append(name)
        exec(compile(source, name, "exec"), module.__dict__)
        torch.manual_seed(0)
        return module.M()

    yield make
    for name in names:
        del sys.modules[name], linecache.cache[name]


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, 7, generator=generator), torch.randn(size, 7, generator=generator)


def trained(model: Any, example: tuple[Any, ...]) -> tuple[Any, RegBN]:
    model = regbnify(model, RULES, example).train()
    for number in range(3):
        model(*batch(8 + number), *example[2:])
    (regbn,) = (module for module in model.modules() if isinstance(module, RegBN))
    return model, regbn


@pytest.mark.parametrize("shown", [0, 1])
@pytest.mark.parametrize("case", SAME)
def test_the_same_stream_by_another_branch(case: str, shown: int, made: Any) -> None:
    model, regbn = trained(made(SAME[case]), (*batch(), shown))
    hand = made(SAME[case], hand=True)
    hand.hand = copy.deepcopy(regbn)
    for train, way, size in [(True, 1, 6), (True, 0, 6), (False, 1, 3), (False, 0, 3)]:
        torch.testing.assert_close(model.train(train)(*batch(size), way), hand.train(train)(*batch(size), way))
        torch.testing.assert_close(regbn.state_dict(), hand.hand.state_dict())


@pytest.mark.parametrize("case", ANOTHER)
def test_another_stream_by_another_branch_is_left_alone_and_told_once(case: str, made: Any) -> None:
    model, regbn = trained(made(ANOTHER[case]), batch())
    plain = made(ANOTHER[case])
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "regbn" not in name})
    before = copy.deepcopy(regbn.state_dict())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for train in (True, False):
            torch.testing.assert_close(model.train(train)(*batch(), 1), plain(*batch(), 1))
    assert len([each for each in told if issubclass(each.category, RegBNWarning)]) == 1
    torch.testing.assert_close(regbn.state_dict(), before)


def test_a_later_value_of_the_name_is_not_the_side(made: Any) -> None:
    body = """
        f, g = self.fa(a), self.fb(b)
        h = torch.cat([f, g], 1).relu().mean(1, keepdim=True)
        f = self.more(f)
        g = g + h
"""
    rules = {"version": 1, "rules": [{"id": "r", "match": {"point": "cat"}, "normalize": "a"}]}
    model = regbnify(made(body), rules, batch())
    seen: list[torch.Tensor] = []
    model.regbn_r.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    model(*batch())
    (f,) = seen
    assert torch.equal(f, model.fa(batch()[0]))
