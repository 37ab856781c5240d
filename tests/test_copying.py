"""Models that keep results of their forward on themselves can be copied, rewritten, and put back."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from regbn_surgery import RegBN, inspect, regbnify, unregbnify
from regbn_surgery._copying import deep_copy

RULES = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "a"}]}
X = torch.randn(4, 12), torch.randn(4, 20)


class Keeps(nn.Module):
    """Keeps its activations where losses outside of it look for them, in every kind of place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 16), nn.Linear(20, 16), nn.Linear(32, 3)
        self.kept: dict[str, Any] = {"list": []}
        self.state = SimpleNamespace(last=None)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.private = self.a(a)
        self.kept["list"] = [self.private, (self.private, 1)]
        self.state.last = self.shared = self.b(b)
        return self.head(torch.cat([self.private, self.shared], 1))


class OldNorm(Keeps):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            for layer in (self.a, self.b):
                nn.utils.weight_norm(layer, dim=None)


class NonLeafBuffer(Keeps):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scaled", self.a.weight * 2)


def used(cls: type[nn.Module]) -> Any:
    torch.manual_seed(0)
    model = cls()
    model(*X).sum().backward()
    return model


KINDS = pytest.mark.parametrize("cls", [Keeps, OldNorm, NonLeafBuffer])


@KINDS
def test_deep_copies_hold_the_values_without_the_history(cls: type[nn.Module]) -> None:
    model = used(cls)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    twin = deep_copy(model)
    assert _get_current_function_mode_stack() == []
    assert torch.equal(twin.private, model.private)
    assert twin.private is not model.private
    assert twin.private.grad_fn is None
    assert model.private.grad_fn is not None
    assert twin.kept["list"][0] is twin.private
    assert twin.kept["list"][1][0] is twin.private
    assert twin.state.last is twin.shared
    for (name, old), new in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(old, new), name
        assert new.is_leaf
        assert new is not old
    assert torch.equal(twin(*X), model(*X))


@KINDS
@pytest.mark.parametrize("inplace", [False, True])
def test_they_are_rewritten_and_put_back(cls: type[nn.Module], inplace: bool) -> None:
    model = used(cls)
    wanted, kept = model(*X).detach(), model.private
    keys = list(model.state_dict())
    assert len(inspect(model, X).fusion_points) == 1
    assert model.private is kept
    rewritten = regbnify(model, RULES, X, inplace=inplace)
    assert (rewritten is model) == inplace
    assert any(isinstance(module, RegBN) for module in rewritten.modules())
    assert model.private is kept
    rewritten(*X).sum().backward()
    assert unregbnify(rewritten) is rewritten
    assert list(rewritten.state_dict()) == keys
    torch.testing.assert_close(rewritten(*X).detach(), wanted)
