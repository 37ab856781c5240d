"""Weights that are tensors of a class of their own, with few operations: as libraries for quantisation make them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from regbn_surgery import RegBN, inspect, plan, regbnify, unregbnify
from regbn_surgery._state import Snapshot, same_values, watching_parameters

aten = torch.ops.aten
RULES = {
    "version": 1,
    "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "a", "regbn": {"normalize_output": False}}],
}


class Int8(Tensor):
    """A weight [n, k] as int8 values and a scale; knows a linear layer, and otherwise how to be copied."""

    values: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, scale: Tensor) -> Int8:
        made: Any = Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32, device=values.device)  # type: ignore[attr-defined]
        made.values, made.scale = values, scale
        return made  # type: ignore[no-any-return]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], *_: Any) -> Int8:
        return cls(inner["values"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten.detach.default, aten.clone.default, aten.alias.default):
            return cls(args[0].values.clone(), args[0].scale.clone())
        if func in (aten.t.default, aten.mm.default, aten.addmm.default):
            plain = pytree.tree_map(lambda x: x.values * x.scale if isinstance(x, Int8) else x, (args, kwargs or {}))
            return func(*plain[0], **plain[1])
        if func is aten.copy_.default:
            args[0].values.copy_(args[1].values)
            args[0].scale.copy_(args[1].scale)
            return args[0]
        raise NotImplementedError(f"{func} of {cls.__name__}")


def quantised(weight: Tensor) -> nn.Parameter:
    scale = weight.abs().amax() / 127
    return nn.Parameter(Int8((weight / scale).round().to(torch.int8), scale), requires_grad=False)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(6, 16), nn.Linear(32, 3)
        for layer in (self.a, self.b, self.head):
            layer.weight = quantised(layer.weight.detach())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(a), self.b(b)], 1))


X = torch.randn(4, 8), torch.randn(4, 6)


def test_the_class_is_as_poor_as_it_should_be() -> None:
    weight = Model().a.weight
    with pytest.raises(NotImplementedError, match="equal"):
        torch.equal(weight, weight)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_whole_way(inplace: bool) -> None:
    torch.manual_seed(0)
    model = Model().eval()
    wanted = model(*X)
    assert [point.kind for point in inspect(model, X).fusion_points] == ["concat"]
    assert len(plan(model, RULES, X).sites) == 1
    rewritten = regbnify(model, RULES, X, inplace=inplace).eval()
    assert sum(isinstance(module, RegBN) for module in rewritten.modules()) == 1
    assert isinstance(rewritten.a.weight, Int8)
    torch.testing.assert_close(rewritten(*X), wanted)
    torch.testing.assert_close(unregbnify(rewritten)(*X), wanted, rtol=0, atol=0)


def test_what_a_forward_writes_to_them_is_seen_and_put_back() -> None:
    model = Model()
    before = model.a.weight.values.clone()  # type: ignore[attr-defined]
    changed: list[str] = []
    with watching_parameters(model, changed):
        pass
    assert changed == []
    with watching_parameters(model, changed), torch.no_grad():
        model.a.weight.values.zero_()  # type: ignore[attr-defined]
    assert changed == ["a.weight"]
    assert torch.equal(model.a.weight.values, before)  # type: ignore[attr-defined]
    snapshot = Snapshot(model, model.parameters())
    model.a.weight.values.zero_()  # type: ignore[attr-defined]
    snapshot.restore()
    assert torch.equal(model.a.weight.values, before)  # type: ignore[attr-defined]


def test_values_are_compared() -> None:
    weight = torch.randn(3, 4)
    ours, twin, other = quantised(weight), quantised(weight), quantised(weight.flip(0))
    assert same_values(ours, twin)
    assert not same_values(ours, other)
    assert not same_values(torch.zeros(2), torch.ones(2))
    sparse = torch.eye(3).to_sparse()
    assert same_values(sparse, sparse)  # which torch cannot compare
