"""Python in a rewritten forward runs as it is written: strides, settings, exceptions and recursion are not frozen.

With W = 0 and output norms off RegBN changes nothing, so that every call must give exactly what the original gives.
"""

from __future__ import annotations

import copy
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import regbnify

from ._models import regbns, rule, watched

NO_CHANGE = rule("concat", normalize_output=False)


class Base(nn.Module):
    """Two branches and a head. A subclass says in `early` and `late` where Python decides something."""

    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb, self.head = nn.Linear(5, 8), nn.Linear(7, 8), nn.Linear(16, 3)
        self.config = types.SimpleNamespace(scale=1.0, **{f"option_{n}": n for n in range(40)})
        self.options = {"scale": 1.0, "names": ["one"]}
        self.scales = [1.0, 2.0]

    def forward(self, a: Tensor, b: Tensor, **how: Any) -> Tensor:
        f, g = self.early(a, **how)
        result: Tensor = self.head(torch.cat([f, self.fb(b) * g], 1))
        return result

    def early(self, a: Tensor, **how: Any) -> tuple[Tensor, Any]:
        raise NotImplementedError


class Strides(Base):
    def early(self, a: Tensor, **how: Any) -> tuple[Tensor, Any]:
        step = a.stride()
        windows = a.as_strided((len(a), 2, 5), (step[0], 2 * step[1], step[1]))
        return self.fa(windows).mean(1), 1.0


class Contiguous(Base):
    def early(self, a: Tensor, **how: Any) -> tuple[Tensor, Any]:
        scale = 2.0 if a.is_contiguous() else 0.5
        return self.fa(a[:, :5]) * scale, scale


class ConfigField(Base):
    def early(self, a: Tensor, **how: Any) -> tuple[Tensor, Any]:
        return self.fa(a[:, :5]) * self.config.scale, 1.0


class DictField(Base):
    def early(self, a: Tensor, **how: Any) -> tuple[Tensor, Any]:
        return self.fa(a[:, :5]) * self.options["scale"], len(self.options["names"])  # type: ignore[operator,arg-type]


class ListField(Base):
    def early(self, a: Tensor, **how: Any) -> tuple[Tensor, Any]:
        return self.fa(a[:, :5]) * self.scales[-1], sum(self.scales)


class ClassField(Base):
    scale = 1.0

    def early(self, a: Tensor, **how: Any) -> tuple[Tensor, Any]:
        return self.fa(a[:, :5]) * type(self).scale, self.scale


class ChildField(Base):
    def early(self, a: Tensor, **how: Any) -> tuple[Tensor, Any]:
        return self.fa(a[:, :5]) * getattr(self.fa, "scale", 1.0), 1.0


class RequiresGrad(Base):
    def early(self, a: Tensor, **how: Any) -> tuple[Tensor, Any]:
        return self.fa(a[:, :5]) * (2.0 if self.fa.weight.requires_grad else 1.0), 1.0


class Exceptions(Base):
    def early(self, a: Tensor, **how: Any) -> tuple[Tensor, Any]:
        f = self.fa(a[:, :5])
        try:
            factor = torch.linalg.cholesky(torch.eye(8) * a.detach().mean())
        except RuntimeError:
            factor = 2 * torch.eye(8)
        else:
            factor = factor + 0.5
        finally:
            f = f * 1.5
        return f @ factor, 1.0


class ExceptionOfALookUp(Base):
    def early(self, a: Tensor, **how: Any) -> tuple[Tensor, Any]:
        try:
            scale = self.options["other"]
        except KeyError:
            scale = 1.0
        return self.fa(a[:, :5]) * scale, scale  # type: ignore[operator]


class Formatted(Base):
    def early(self, a: Tensor, **how: Any) -> tuple[Tensor, Any]:
        scale = float(f"{self.config.scale:.1f}")
        return self.fa(a[:, :5]) * scale, 1.0


class SizeOfABuffer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.ones(2))

    def early(self, a: Tensor, **how: Any) -> tuple[Tensor, Any]:
        return self.fa(a[:, :5]) * len(self.memory), 1.0


def change_scale(model: nn.Module) -> None:
    model.config.scale = 0.25  # type: ignore[union-attr]
    model.options["scale"] = 0.5  # type: ignore[operator,index]
    model.options["names"].append("two")  # type: ignore[operator,index,union-attr]
    model.options["other"] = 3.0  # type: ignore[operator,index]
    model.scales += [4.0]  # type: ignore[operator]
    model.fa.scale = 3.0  # type: ignore[union-attr,assignment]


def change_class(model: nn.Module) -> None:
    for kind in type(model).__mro__:
        if "scale" in vars(kind):
            kind.scale = 0.5  # type: ignore[attr-defined]


def change_tensors(model: nn.Module) -> None:
    model.fa.weight.requires_grad_(False)  # type: ignore[union-attr]
    if hasattr(model, "memory"):
        model.memory = torch.ones(3)


CHANGES = [change_scale, change_class, change_tensors]
MODELS = [kind for kind in list(globals().values()) if isinstance(kind, type) and issubclass(kind, Base)][1:]


def layouts(size: int = 8) -> dict[str, Tensor]:
    torch.manual_seed(size)
    plain = torch.randn(size, 8)
    return {
        "plain": plain,
        "negative": -plain.abs(),
        "positive": plain.abs(),
        "transposed": plain.t().contiguous().t(),
        "a stretch": torch.randn(size, 16)[:, ::2],
        "repeated": plain[:1].expand(size, 8),
    }


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("first", ["plain", "negative", pytest.param("transposed", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", MODELS)
def test_every_call_is_the_original(kind: type[Base], first: str, train: bool, monkeypatch: Any) -> None:
    """Layouts and values other than the example's, then settings that change between calls."""
    if "scale" in vars(kind):
        monkeypatch.setattr(kind, "scale", 1.0)
    torch.manual_seed(0)
    original = kind()
    b = torch.randn(8, 7)
    model = regbnify(original, NO_CHANGE, (layouts()[first].clone(), b))
    for change in [None, *CHANGES]:
        if change is not None:
            change(model)
            change(original)
        for name, a in layouts().items():
            _zero(model)
            with watched(model) as runs:
                found = model.train(train)(a, b)
            if not train:
                torch.testing.assert_close(found, original.train(train)(a, b), msg=lambda m, n=name: f"{n}: {m}")
            assert len(runs) == 1, f"{name}: RegBN ran {len(runs)} times"
            expected = original.early(a)[0].detach()
            torch.testing.assert_close(runs[0][0], expected)


def _zero(model: nn.Module) -> None:
    for regbn in regbns(model):
        regbn.W.data.zero_()


class CallsItself(nn.Module):
    """A forward that calls itself: test-time averaging, guidance, or unpacking of an argument."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.fa, self.fb, self.head, self.how = nn.Linear(5, 8), nn.Linear(7, 8), nn.Linear(16, 3), how

    def forward(self, a: Any, b: Tensor | None = None, refine: int = 2) -> Tensor:
        if isinstance(a, dict):
            return self.forward(**a)
        if refine:
            call = {"forward": self.forward, "call": self, "class": type(self).forward.__get__(self)}[self.how]
            result: Tensor = call(a, b, refine - 1) * 0.5
            if self.how == "class":
                result = result + self.forward(a * 2, b, refine=0)
            return result
        joined: Tensor = self.head(torch.cat([self.fa(a), self.fb(b)], 1))
        return joined


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("how", ["forward", "call", "class"])
@pytest.mark.parametrize("example", [0, 2])
def test_forward_that_calls_itself(how: str, train: bool, example: int) -> None:
    """RegBN runs once for each time that f and g are made, on what the branches have made."""
    x = torch.randn(6, 5), torch.randn(6, 7)
    model = regbnify(CallsItself(how), rule(), (*x, example)).train(train)
    for refine in (0, 1, 2, 3):
        _assert_levels(model, x, how, refine)
        if how != "class":
            _assert_levels(copy.deepcopy(model), x, how, refine)


def _assert_levels(model: nn.Module, x: tuple[Tensor, Tensor], how: str, refine: int) -> None:
    before = int(regbns(model)[0].num_steps)
    with watched(model) as runs:
        model(*x, refine)
    expected = [model.fa(x[0]).detach()]  # type: ignore[operator]
    expected += [model.fa(x[0] * 2).detach()] * (refine if how == "class" else 0)  # type: ignore[operator]
    assert len(runs) == len(expected), f"refine={refine}: RegBN ran {len(runs)} times instead of {len(expected)}"
    for (f, _), value in zip(runs, expected, strict=True):
        torch.testing.assert_close(f, value)
    assert int(regbns(model)[0].num_steps) == before + len(expected) * model.training


def test_arguments_that_are_unpacked_by_a_call_of_itself() -> None:
    a, b = torch.randn(6, 5), torch.randn(6, 7)
    model = regbnify(CallsItself("forward"), rule(), (a, b, 0)).train()
    with watched(model) as runs:
        model({"a": a, "b": b, "refine": 0})
    assert len(runs) == 1
