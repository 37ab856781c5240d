"""Who keeps a RegBN among its children, and hosts that must not get another class."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RewriteError, unregbnify
from regbn_surgery._surgery import identity

from .models import build, counting, everything, operate, run, site_of, step, vectors, ways


class Parallel(nn.Sequential):
    """One layer for each input, joined; sums on the way keep it from being hooked."""

    def forward(self, xs: Any) -> Tensor:  # type: ignore[override]
        return torch.cat([layer(x) for layer, x in zip(self, xs, strict=True)], dim=1)


class InSequential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.groups = nn.ModuleList([Parallel(nn.Linear(6, 8), nn.Linear(5, 8))])
        self.head = nn.Linear(16, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.groups[0]([a, b]))


class OverChildren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Children()
        self.head = nn.Linear(16, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.pair(a, b))


class Children(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(5, 8)

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat([child(x) for child, x in zip(self.children(), xs, strict=True)], dim=1)


@pytest.mark.parametrize("cls", [InSequential, OverChildren])
def test_a_host_that_goes_over_its_children_never_sees_regbn(cls: type[nn.Module]) -> None:
    model = build(cls)
    rewritten = operate(model, vectors())
    (keeper,) = [name for name, module in rewritten.named_modules() if module is site_of(rewritten)]
    assert keeper == ("regbn_x_groups_0" if cls is InSequential else "regbn_x_pair")
    for copied in (rewritten, copy.deepcopy(rewritten), pickle.loads(pickle.dumps(rewritten))):
        step(copied, vectors(7))
        for training in (True, False):
            with identity(copied):
                found = run(copied, vectors(), training)
            torch.testing.assert_close(found, run(unregbnify(copy.deepcopy(copied)), vectors(), training))
            with counting(copied) as calls:
                assert not torch.equal(run(copied, vectors(), training), found)
            assert dict(calls) == {keeper: 1}
    doubled = copy.deepcopy(rewritten).double()
    assert run(doubled, {k: x.double() for k, x in vectors().items()}).dtype == torch.float64
    unregbnify(rewritten)
    assert list(rewritten.state_dict()) == list(model.state_dict())
    assert "regbn_x" not in str(everything(rewritten))


def test_a_name_that_is_taken_around_the_host_is_not_overwritten() -> None:
    model = build(OverChildren)
    model.regbn_x_pair = nn.Linear(2, 2)
    before = everything(model)
    with pytest.raises(RewriteError, match=r"OverChildren already has an attribute 'regbn_x_pair'"):
        operate(model, vectors(), inplace=True)
    assert everything(model) == before


def test_a_container_with_nothing_around_it_is_refused_with_the_remedy() -> None:
    model = Parallel(nn.Linear(6, 8), nn.Linear(5, 8))
    before = everything(model)
    given = {
        "version": 1,
        "rules": [{"id": "x", "match": {"kind": "concat"}, "normalize": "xs.0", "against": "xs.1"}],
    }
    example = regbn_surgery.Inputs([torch.randn(4, 6), torch.randn(4, 5)])
    with pytest.raises(RewriteError, match=r"iterates over its own children.*in another module"):
        regbn_surgery.regbnify(model, given, example, inplace=True)
    assert everything(model) == before


class Filled(nn.Module):
    """Its forward is a method with an argument filled in, put on the instance by its own `__init__`."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 8)
        self.head = nn.Linear(16, 3)
        self.forward = functools.partial(self.forward_with, scale=2.0)

    def forward_with(self, a: Tensor, b: Tensor, scale: float) -> Tensor:
        return self.head(torch.cat([self.enc_a(a) * scale, self.enc_b(b)], dim=1))


class Exact(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 8)
        self.head = nn.Linear(16, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        scale = 2.0 if type(self) is Exact else 1.0
        return self.head(torch.cat([self.enc_a(a) * scale, self.enc_b(b)], dim=1))


@pytest.mark.parametrize("cls", [Filled, Exact])
def test_an_instance_that_must_keep_its_very_class(cls: type[nn.Module]) -> None:
    model = build(cls)
    rewritten = operate(model, vectors())
    assert type(rewritten) is cls
    assert ways(rewritten) == {"source"}
    assert list(inspect.signature(rewritten.forward).parameters)[:2] == ["a", "b"]
    for copied in (rewritten, copy.deepcopy(rewritten), pickle.loads(pickle.dumps(rewritten))):
        assert copied.forward.host is copied
        step(copied, vectors(7))
        with identity(copied):
            found = run(copied, vectors(), False)
        with counting(copied) as calls:
            assert not torch.equal(run(copied, vectors(), False), found)
        assert dict(calls) == {"regbn_x": 1}
        torch.testing.assert_close(run(unregbnify(copied), vectors(), False), found)
        assert ("forward" in vars(copied)) is (cls is Filled)


@pytest.mark.parametrize("cls", [Filled, Exact])
def test_such_an_instance_has_no_further_methods(cls: type[nn.Module]) -> None:
    cls.generate = lambda self, a, b: self(a, b)  # type: ignore[attr-defined]
    model = build(cls)
    before = sorted(vars(model))
    with pytest.raises(RewriteError, match="has to keep its exact class"):
        operate(model, vectors(), inplace=True, methods=["generate"])
    assert sorted(vars(model)) == before
    assert type(model) is cls
