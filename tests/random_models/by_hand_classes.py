"""Unusual classes, signatures, arguments, outputs and ways to call submodules."""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict, namedtuple
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm

from regbn_surgery import Inputs

from ._by_hand import MakeInputs, case, sequences, usual_calls, vectors
from ._faith import Call
from .by_hand_values import Late, length_calls


@case()
class ModuleMadeInForward(Late):
    """Layers without parameters, made on the spot."""

    def forward(self, a, b):
        f, g = nn.ReLU()(self.fa(a)), nn.Dropout(0.5).train(self.training)(self.fb(b))
        return self.head(torch.cat([f, g], 1))


class Cat(nn.Module):
    def forward(self, *xs):
        return torch.cat(xs, 1)


@case(normalize="inputs.0")
class VariadicFusion(Late):
    def __init__(self) -> None:
        super().__init__()
        self.cat = Cat()

    def forward(self, *inputs):
        return self.head(self.cat(self.fa(inputs[0]), self.fb(inputs[1])))


class KeywordOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, left=None, *, right, scale=1.0):
        return self.head(torch.cat([left * scale, right], 1) + left.sum())


@case()
class KeywordOnlyOwner(Late):
    def __init__(self) -> None:
        super().__init__()
        self.fuse = KeywordOnly()

    def forward(self, a, b):
        return self.fuse(self.fa(a), right=self.fb(b) * 2, scale=0.5)


@case()
class StrangeArgumentNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fuse = StrangeNames()
        self.fa, self.fb = nn.Linear(6, 8), nn.Linear(5, 8)

    def forward(self, a, b):
        return self.fuse(self.fa(a), self.fb(b), 2.0, torch.float32)


class StrangeNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, input, type, torch_=1.0, device=None, getattr_1=3):
        return self.head(torch.cat([input * torch_, type.sin()], 1).to(device) + getattr_1)


def kwargs_calls(make: MakeInputs) -> list[Call]:
    calls = []
    for i, call in enumerate(usual_calls(make)):
        extra: dict[str, Any] = [{}, {"scale": 2.0}, {"scale": 2.0, "note": "x"}, {"shift": torch.ones(1)}][i % 4]
        calls.append(Call(Inputs(*call.inputs.args, **extra), call.train, i))
    return calls


class TakesKwargs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, f, g, **kwargs):
        if "shift" in kwargs:
            f = f + kwargs["shift"]
        return self.head(torch.cat([f, g], 1) * kwargs.get("scale", 1.0) + f.mean())


@case(calls=kwargs_calls)
class KwargsPassThrough(Late):
    def __init__(self) -> None:
        super().__init__()
        self.fuse = TakesKwargs()

    def forward(self, a, b, *args, **kwargs):
        return self.fuse(self.fa(a), self.fb(b), *args, **kwargs)


def optional_calls(make: MakeInputs) -> list[Call]:
    calls = []
    for i, call in enumerate(usual_calls(make)):
        a, b = call.inputs.args
        inputs = [Inputs(a, b), Inputs(a), Inputs(a, None), Inputs(a=None, b=b), Inputs(b=b, a=a)][i % 5]
        calls.append(Call(inputs, call.train, i))
    return calls


@case(calls=optional_calls)
class MissingModality(Late):
    def forward(self, a=None, b=None):
        f = self.fa(a) if a is not None else None
        g = self.fb(b) if b is not None else None
        if f is None:
            f = torch.zeros_like(g)
        if g is None:
            g = torch.zeros_like(f)
        return self.head(torch.cat([f, g], 1))


@dataclasses.dataclass
class Output:
    logits: Tensor
    features: dict[str, Any]
    loss: Tensor | None = None
    extra: Any = None


@case()
class DataclassOutput(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        h = torch.cat([f, g], 1)
        return Output(self.head(h), {"f": f, "deep": {"g": [g, (h,)]}}, extra=("x", 3, None))


Pair = namedtuple("Pair", "f g")


class Typed(NamedTuple):
    out: Tensor
    pair: Pair
    shape: Any


@case()
class NamedTupleOutput(Late):
    def forward(self, a, b):
        pair = Pair(self.fa(a), self.fb(b))
        return Typed(self.head(torch.cat(pair, 1)), pair, a.shape)


@case()
class OrderedDictOutput(Late):
    def forward(self, a, b):
        feats = OrderedDict(f=self.fa(a), g=self.fb(b))
        feats["out"] = self.head(torch.cat(list(feats.values()), 1))
        return feats


class Dot(dict):
    """A dict with attribute access, as every second research codebase has one."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


@case()
class DotDictOutput(Late):
    def forward(self, a, b):
        out = Dot(f=self.fa(a), g=self.fb(b))
        out.logits = self.head(torch.cat([out.f, out.g], 1))
        return out


@dataclasses.dataclass
class Batch:
    a: Tensor
    b: Tensor
    name: str = "x"
    weight: float = 1.0


def batch_inputs(n: int) -> Inputs:
    return Inputs(Batch(torch.randn(n, 6), torch.randn(n, 5)))


@case(make=batch_inputs, normalize="batch.a")
class DataclassInput(Late):
    def forward(self, batch):
        f, g = self.fa(batch.a), self.fb(batch.b)
        return self.head(torch.cat([f, g * batch.weight], 1))


@case(
    make=lambda n: Inputs({"a": torch.randn(n, 6), "meta": {"b": torch.randn(n, 5), "ids": ["u"] * 3}}),
    normalize="batch.a",
)
class NestedDictInput(Late):
    def forward(self, batch):
        f, g = self.fa(batch["a"]), self.fb(batch["meta"]["b"])
        return self.head(torch.cat([f, g], 1)), len(batch["meta"]["ids"])


@case(make=lambda n: Inputs([torch.randn(n, 6), torch.randn(n, 5)]), normalize="xs.0")
class ListInputPopped(Late):
    """The forward eats its own list."""

    def forward(self, xs):
        xs = list(xs)
        g = self.fb(xs.pop())
        f = self.fa(xs.pop())
        return self.head(torch.cat([f, g], 1))


@case()
class PartialForward(Late):
    def __init__(self) -> None:
        super().__init__()
        self.forward = functools.partial(self.forward_with, scale=2.0)

    def forward_with(self, a, b, scale):
        return self.head(torch.cat([self.fa(a) * scale, self.fb(b)], 1))


class Lambda(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *xs):
        return self.function(*xs)


def join(f, g):
    return torch.cat([f, g * 2], 1)


@case()
class LambdaLayers(Late):
    def __init__(self) -> None:
        super().__init__()
        self.join = Lambda(join)

    def forward(self, a, b):
        return self.head(self.join(self.fa(a), self.fb(b)))


class FusedLinear(nn.Linear):
    """A Linear that joins first."""

    def forward(self, f, g):
        return super().forward(torch.cat([f, g], 1) + f.mean())


@case()
class SubclassOfLinear(Late):
    def __init__(self) -> None:
        super().__init__()
        self.head = FusedLinear(16, 3)

    def forward(self, a, b):
        return self.head(self.fa(a), self.fb(b))


class Parallel(nn.Sequential):
    """A Sequential that is none."""

    def forward(self, xs):
        return torch.cat([layer(x) for layer, x in zip(self, xs, strict=True)], dim=1)


@case()
class SubclassOfSequential(Late):
    def __init__(self) -> None:
        super().__init__()
        self.branches = Parallel(nn.Linear(6, 8), nn.Linear(5, 8))

    def forward(self, a, b):
        return self.head(self.branches([a, b]))


class Branches(nn.ModuleDict):
    def forward(self, inputs):
        return torch.cat([self[name](x) for name, x in inputs.items()], 1)


@case()
class SubclassOfModuleDict(Late):
    def __init__(self) -> None:
        super().__init__()
        self.branches = Branches({"a": nn.Linear(6, 8), "b": nn.Linear(5, 8)})

    def forward(self, a, b):
        return self.head(self.branches({"a": a, "b": b}))


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).t()


@case(pickles=False)
class Parametrised(Late):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 8))
        parametrize.register_parametrization(self, "w", Symmetric())

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        return self.head(torch.cat([f @ self.w, g], 1))


@case()
class SpectralNorm(Late):
    def __init__(self) -> None:
        super().__init__()
        self.fa = spectral_norm(self.fa)
        self.head = spectral_norm(self.head)

    def forward(self, a, b):
        return self.head(torch.cat([self.fa(a), self.fb(b)], 1))


class OwnWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 16) / 4)

    def forward(self, f, g):
        return F.linear(torch.cat([f, g], 1) + f.mean(), self.weight)


@case()
class SpectralNormOnTheOwner(Late):
    def __init__(self) -> None:
        super().__init__()
        self.fuse = spectral_norm(OwnWeight())

    def forward(self, a, b):
        return self.fuse(self.fa(a), self.fb(b))


@case(pickles=False)
class NewWeightNormOnTheChild(Late):
    def __init__(self) -> None:
        super().__init__()
        self.fa = parametrizations.orthogonal(nn.Linear(8, 8, bias=False))
        self.pre = nn.Linear(6, 8)

    def forward(self, a, b):
        return self.head(torch.cat([F.linear(self.pre(a), self.fa.weight), self.fb(b)], 1))


@case()
class CompiledSubmodule(Late):
    def __init__(self) -> None:
        super().__init__()
        self.fa = torch.compile(self.fa, backend="eager")

    def forward(self, a, b):
        return self.head(torch.cat([self.fa(a), self.fb(b)], 1))


@case(pickles=False)
class ScriptedSubmodule(Late):
    def __init__(self) -> None:
        super().__init__()
        self.act = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Tanh()))

    def forward(self, a, b):
        return self.head(torch.cat([self.act(self.fa(a)), self.fb(b)], 1))


REGISTRY: dict[str, type] = {}


class Registered(nn.Module):
    """Classes that register themselves by name, and refuse a second of the same name."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.__name__ in REGISTRY:
            raise KeyError(f"{cls.__name__} is registered already")
        REGISTRY[cls.__name__] = cls


class RegisteredFuse(Registered):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, f, g):
        return self.head(torch.cat([f, g], 1) + f.mean())


@case()
class SelfRegistering(Late):
    def __init__(self) -> None:
        super().__init__()
        self.fuse = RegisteredFuse()

    def forward(self, a, b):
        return self.fuse(self.fa(a), self.fb(b))


class Meta(type):
    def __call__(cls, *args, **kwargs):
        made = super().__call__(*args, **kwargs)
        made.ready = True
        return made


@case()
class WithMetaclass(Late, metaclass=Meta):
    def forward(self, a, b):
        assert self.ready
        return self.head(torch.cat([self.fa(a), self.fb(b)], 1))


@case()
class LooksAtItsClass(Late):
    def forward(self, a, b):
        scale = 2.0 if type(self) is LooksAtItsClass else 1.0
        return self.head(torch.cat([self.fa(a) * scale, self.fb(b)], 1))


@case()
class OwnGetattr(Late):
    """Attribute access that falls through to a wrapped module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.scale = 3.0
        self.inner.proj = nn.Linear(8, 8)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, a, b):
        return self.head(torch.cat([self.proj(self.fa(a)) * self.scale, self.fb(b)], 1))


@case()
class Properties(Late):
    @property
    def temperature(self):
        return self.fa.weight.norm() + 1

    def forward(self, a, b):
        return self.head(torch.cat([self.fa(a) / self.temperature, self.fb(b)], 1))


@case()
class CallsForwardDirectly(Late):
    def forward(self, a, b):
        return self.head.forward(torch.cat([self.fa.forward(a), self.fb.forward(b)], 1))


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Late2()

    def forward(self, *args, **kwargs):
        return self.net(*args, **kwargs)


class Late2(Late):
    def forward(self, a, b):
        return self.head(torch.cat([self.fa(a), self.fb(b)], 1))


@case(normalize="args.0", make=vectors)
class WrapperOfAnother(Wrapped):
    """Inputs that have no names of their own."""


@case()
class Complex(Late):
    """A spectrum between the branches and the head."""

    def forward(self, a, b):
        f, g = torch.fft.rfft(self.fa(a)), torch.fft.rfft(self.fb(b))
        f, g = torch.fft.irfft(f, n=8), torch.fft.irfft(g * 1j, n=8)
        return self.head(torch.cat([f, g], 1))


@case(make=sequences, calls=length_calls)
class EinopsByHand(nn.Module):
    """`b (n m) c -> b n (m c)` by views, as people write it without einops."""

    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb = nn.Linear(6, 8), nn.Linear(5, 8)
        self.head = nn.Linear(16, 3)

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        bs, n, c = f.shape
        f = f.reshape(bs, n, 2, c // 2).permute(0, 2, 1, 3).reshape(bs * 2, n, c // 2)
        f = f.reshape(bs, 2, n, -1).transpose(1, 2).flatten(2)
        h = torch.cat([f, g], dim=-1)
        return self.head(h).mean(dim=1)


@case()
class WhereMask(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        f = torch.where(f > 0, f, 0.01 * f)
        g = g.masked_fill(g < 0, 0.0)
        keep = (a.abs().sum(1, keepdim=True) > 1).float()
        return self.head(torch.cat([f * keep, g], 1))


@case()
class HugeConstant(Late):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(20000, 8)

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        index = (a[:, 0].abs() * 100).long().clamp(max=19999)
        return self.head(torch.cat([f + self.table[index], g], 1))


@case()
class ZipOverBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"a": nn.Linear(6, 8), "b": nn.Linear(5, 8)})
        self.heads = nn.ModuleList(nn.Linear(16, 3) for _ in range(3))

    def forward(self, a, b):
        feats = {name: self.branches[name](x) for name, x in (("a", a), ("b", b))}
        h = torch.cat(tuple(feats.values()), -1)
        return {f"head{i}": head(h) for i, head in enumerate(self.heads)}


@case(make=lambda n: Inputs(torch.randn(n, 6), torch.randn(n, 5), torch.randint(0, 3, (n,))))
class LossInside(Late):
    def forward(self, a, b, labels=None):
        out = self.head(torch.cat([self.fa(a), self.fb(b)], 1))
        if labels is None:
            return out
        return {"loss": F.cross_entropy(out, labels), "logits": out}


@case(kind="sum", points=1)
class SumOfGenerator(Late):
    """`sum(branch(x) for ...)` starts at the int 0."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, a, b):
        return self.head(sum(layer(x) for layer, x in ((self.fa, a), (self.fb, b))))


@case(kind="sum", points=1)
class AugmentedAdd(Late):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, a, b):
        h = self.fa(a)
        h += self.fb(b)
        return self.head(h), h


@case(kind="sum", points=1)
class StackThenSum(Late):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, a, b):
        out = self.fa(a)
        return self.head(torch.add(out, other=self.fb(b), alpha=0.5))
