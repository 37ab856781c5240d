"""Names and containers that users have: keywords as names, attribute dicts, kept activations, quantised weights."""

from __future__ import annotations

import keyword
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm

from regbn_surgery import RegBNError, inspect, load_regbn, regbnify, save_regbn, unregbnify

from ._models import regbns, rule, watched

X = torch.randn(4, 5), torch.randn(4, 7)


# -- names that are no identifiers -------------------------------------------------------------------------------

#: A sixth of Python's keywords stands for all of them in `make test`.
NAMES = [
    *(pytest.param(name, marks=[] if n % 6 == 0 else pytest.mark.slow) for n, name in enumerate(keyword.kwlist)),
    *keyword.softkwlist,
    "0",
    "a-b",
    "a b",
    "ünïcode",
    "self",
    "regbn",
    "torch",
    "_regbn",
]


class Named(nn.Module):
    """Registers the branch of a under any name."""

    def __init__(self, name: str, how: str) -> None:
        super().__init__()
        self.name, self.how = name, how
        self.add_module(name, nn.Linear(5, 8))
        self.local, self.head = nn.Linear(7, 8), nn.Linear(16, 3)
        self.views = nn.ModuleDict({name: nn.Linear(8, 8)})

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f = getattr(self, self.name)(a) if self.how == "getattr" else self._modules[self.name](a)  # type: ignore[misc]
        f = self.views[self.name](f)
        result: Tensor = self.head(torch.cat([f, self.local(b)], 1))
        return result


@pytest.mark.parametrize("how", ["getattr", "_modules"])
@pytest.mark.parametrize("name", NAMES)
def test_names(name: str, how: str) -> None:
    original = Named(name, how)
    assert len(inspect(original, X).fusion_points) == 1
    model = regbnify(original, rule(), X)
    assert set(model.state_dict()) > set(original.state_dict())
    _assert_one_run(model, X)
    torch.testing.assert_close(unregbnify(model).eval()(*X), original.eval()(*X))


def _assert_one_run(model: nn.Module, x: Any, kwargs: dict[str, Any] | None = None) -> None:
    for train in (True, False):
        with watched(model) as runs:
            model.train(train)(*x, **(kwargs or {}))
        assert len(runs) == 1, f"RegBN ran {len(runs)} times, train={train}"


@pytest.mark.parametrize("name", ["class", "in", "a_b"])
def test_arguments_with_such_names(name: str) -> None:
    """Keyword arguments that only `**kwargs` can receive."""

    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fa, self.fb, self.head = nn.Linear(5, 8), nn.Linear(7, 8), nn.Linear(16, 3)

        def forward(self, a: Tensor, **others: Tensor) -> Tensor:
            result: Tensor = self.head(torch.cat([self.fa(a), self.fb(others[name])], 1))
            return result

    rules = {
        "version": 1,
        "modalities": {"a": ["a"], "b": [name]},
        "rules": rule()["rules"],
    }
    model = regbnify(Keywords(), rules, {"a": X[0], name: X[1]})
    _assert_one_run(model, (X[0],), {name: X[1]})


# -- batches in attribute dicts ----------------------------------------------------------------------------------


class Plain(dict[str, Any]):
    """The usual one: a missing attribute raises KeyError."""

    __getattr__ = dict.__getitem__


class Polite(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Writable(Plain):
    __setattr__ = dict.__setitem__  # type: ignore[assignment]


class Defaulting(dict[str, Any]):
    """A missing attribute is None, as in some configuration classes."""

    __getattr__ = dict.get


class OfBatches(nn.Module):
    def __init__(self, by: str, depth: int = 0) -> None:
        super().__init__()
        self.fa, self.fb, self.head, self.by, self.depth = nn.Linear(5, 8), nn.Linear(7, 8), nn.Linear(16, 3), by, depth

    def forward(self, batch: Any) -> Tensor:
        for _ in range(self.depth):
            batch = batch.inner
        a, b = (batch.a, batch.b) if self.by == "attribute" else (batch["a"], batch["b"])
        result: Tensor = self.head(torch.cat([self.fa(a), self.fb(b)], 1))
        return result


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("by", ["attribute", "key"])
@pytest.mark.parametrize("kind", [Plain, Polite, Writable, Defaulting])
def test_attribute_dict(kind: type[dict[str, Any]], by: str, depth: int) -> None:
    def batch(size: int = 4) -> Any:
        made = kind(a=torch.randn(size, 5), b=torch.randn(size, 7))
        return kind(inner=made) if depth else made

    path = "batch.inner" if depth else "batch"
    rules = {"version": 1, "modalities": {"a": [f"{path}.a"], "b": [f"{path}.b"]}, "rules": rule()["rules"]}
    original = OfBatches(by, depth)
    assert len(inspect(original, (batch(),), {"a": [f"{path}.a"], "b": [f"{path}.b"]}).fusion_points) == 1
    model = regbnify(original, rules, (batch(),))
    for size in (4, 3):
        given = batch(size)
        _assert_one_run(model, (given,))
        assert type(given) is kind


# -- activations that a model keeps on itself --------------------------------------------------------------------


class Keeps(nn.Module):
    """Keeps activations for its losses, as MISA does; `old_norm` has weights that are no leaves, as BAN does."""

    def __init__(self, where: str, old_norm: bool) -> None:
        super().__init__()

        def normed(layer: nn.Module) -> nn.Module:
            return weight_norm(layer, dim=None) if old_norm else layer

        self.fa, self.fb, self.head = normed(nn.Linear(5, 8)), normed(nn.Linear(7, 8)), nn.Linear(16, 3)
        self.where = where
        self.kept: dict[str, Any] = {}

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.fa(a), self.fb(b)
        if self.where == "attribute":
            self.private = f
        elif self.where == "dict":
            self.kept["private"] = f
        elif self.where == "child":
            self.head.seen = [f, g]  # type: ignore[assignment]
        z = torch.cat([f, g], 1)
        if self.where == "joined":
            self.joined = z
        result: Tensor = self.head(z)
        return result


def _done_or_refused(model: nn.Module, inplace: bool) -> tuple[nn.Module | None, RegBNError | None]:
    try:
        return regbnify(model, rule(), X, inplace=inplace), None
    except RegBNError as error:
        return None, error


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("has_run", [True, False])
@pytest.mark.parametrize("old_norm", [True, False])
@pytest.mark.parametrize("where", ["attribute", "dict", "child", "joined", "nowhere"])
def test_activations_kept(where: str, old_norm: bool, has_run: bool, inplace: bool) -> None:
    """In place always works; a copy works where Python can copy the model, else the error says `inplace`."""
    model = Keeps(where, old_norm)
    if has_run:
        model(*X).sum().backward()
    assert len(inspect(model, X).fusion_points) == 1
    rewritten, error = _done_or_refused(model, inplace)
    if rewritten is None:
        assert not inplace, error
        assert "inplace" in str(error)
        assert not regbns(model)
        return
    _assert_one_run(rewritten, X)
    rewritten.zero_grad()
    rewritten.train()(*X).sum().backward()
    assert any(p.grad is not None for p in rewritten.parameters())
    if where == "attribute":
        torch.testing.assert_close(rewritten.private, rewritten.fa(X[0]))  # type: ignore[operator,arg-type]
        assert rewritten.private.grad_fn is not None  # type: ignore[union-attr]
    original = Keeps(where, old_norm)
    original.load_state_dict(unregbnify(rewritten).state_dict())
    torch.testing.assert_close(rewritten.eval()(*X), original.eval()(*X))


# -- weights that torchao has quantised --------------------------------------------------------------------------


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(128, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        result: Tensor = self.head(torch.cat([self.fa(a), self.fb(b)], 1))
        return result


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("inplace", [True, False])
def test_torchao(when: str, inplace: bool, tmp_path: Any) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    x = torch.randn(4, 64), torch.randn(4, 64)
    model: nn.Module = Wide().eval()
    if when == "before":
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert len(inspect(model, x).fusion_points) == 1
    model = regbnify(model, rule(), x, inplace=inplace)
    if when == "after":
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    with watched(model) as runs:
        model.eval()(*x)
    assert len(runs) == 1


def test_saved_under_such_names(tmp_path: Any) -> None:
    model = regbnify(Named("global", "getattr"), rule(), X)
    model.train()(*X)
    save_regbn(model, tmp_path / "checkpoint")
    loaded = load_regbn(Named("global", "getattr"), tmp_path / "checkpoint")
    torch.testing.assert_close(loaded.eval()(*X), model.eval()(*X))
