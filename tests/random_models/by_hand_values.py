"""Forwards whose course or constants depend on values, sizes, settings or chance: what a graph could bake in."""

from __future__ import annotations

import enum
import functools
import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from regbn_surgery import Inputs

from ._by_hand import MakeInputs, case, sequences, usual_calls, vectors
from ._faith import Call


class Late(nn.Module):
    """Two linear branches and a head; each case writes only how they are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb = nn.Linear(6, 8), nn.Linear(5, 8)
        self.head = nn.Linear(16, 3)


@case()
class BranchOnValue(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        h = torch.cat([f, g], 1)
        if f.mean() > 0:
            h = h * 2
        return self.head(h)


@case()
class BranchOnItem(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        scale = f.abs().max().item()
        return self.head(torch.cat([f / scale, g], 1))


@case()
class ModalityDropoutByPython(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        if self.training and random.random() < 0.5:
            g = torch.zeros_like(g)
        return self.head(torch.cat([f, g], 1))


@case()
class ModalityDropoutByTorchItem(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        if self.training and torch.rand(1).item() < 0.5:
            f = torch.zeros_like(f)
        return self.head(torch.cat([f, g], 1))


@case()
class BranchOnBatchSize(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        h = torch.cat([f, g], 1)
        if a.shape[0] > 8:  # small batches only
            h = h - h.mean(0)
        return self.head(h)


@case()
class ChunksOfSamples(Late):
    def forward(self, a, b):
        outs = []
        f, g = self.fa(a), self.fb(b)
        h = torch.cat([f, g], 1)
        for i in range(0, len(a), 4):
            outs.append(self.head(h[i : i + 4]))
        return torch.cat(outs)


@case()
class HalfTheBatch(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        n = int(a.shape[0] / 2)
        h = torch.cat([f, g], 1)
        return self.head(torch.cat([h[n:], h[:n]]))


@case()
class HalfByLen(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        n = len(a) >> 1
        h = torch.cat([f, g], 1)
        return self.head(torch.cat([h[n:], h[:n]]))


@case()
class MixupInForward(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        h = torch.cat([f, g], 1)
        if self.training:
            index = torch.randperm(h.shape[0])
            h = 0.7 * h + 0.3 * h[index]
        return self.head(h)


@case()
class LazyCache(Late):
    def __init__(self) -> None:
        super().__init__()
        self.cache = None

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        if self.cache is None:
            self.cache = torch.ones(8) * 3
            g = g * 2
        return self.head(torch.cat([f + self.cache, g], 1))


@case()
class HiddenStateAcrossCalls(Late):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(16, 16)
        self.hidden = None

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        x = torch.cat([f, g], 1).mean(0, keepdim=True)
        self.hidden = self.cell(x, self.hidden).detach() if self.hidden is not None else self.cell(x).detach()
        return self.head(self.hidden + x)


@case()
class StepCounter(Late):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        if self.training:
            self.steps += 1
        alpha = min(1.0, self.steps / 4)
        return self.head(torch.cat([f * alpha, g], 1))


@case()
class StepCounterBuffer(Late):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(0.0))

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        if self.training:
            self.steps += 1
        return self.head(torch.cat([f * self.steps.clamp(max=4) / 4, g], 1))


class Config:
    def __init__(self) -> None:
        self.alpha = 1.0


@case()
class ListCounter(Late):
    def __init__(self) -> None:
        super().__init__()
        self.state = {"calls": 0}

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        self.state["calls"] += 1
        return self.head(torch.cat([f * self.state["calls"], g], 1))


@case()
class ConfigAnneal(Late):
    """A callback changes the config object; here the forward does it itself, through a helper."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()

    def anneal(self):
        self.config.alpha *= 0.9

    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        if self.training:
            self.anneal()
        return self.head(torch.cat([f * self.config.alpha, g], 1))


def float_calls(make: MakeInputs) -> list[Call]:
    calls = []
    for i, call in enumerate(usual_calls(make)):
        calls.append(
            Call(Inputs(*call.inputs.args, alpha=i / 10, mode="sum" if i % 3 else "first", k=i % 4), call.train, i)
        )
    return calls


@case(calls=float_calls)
class ChangingPlainArguments(Late):
    def forward(self, a, b, alpha: float = 1.0, mode: str = "sum", k: int = 0):
        f, g = self.fa(a), self.fb(b)
        if mode == "first":
            f = f[:, :1].expand_as(f)
        f = f.roll(k, 1)
        return self.head(torch.cat([f * alpha, g], 1))


def dtype_calls(make: MakeInputs) -> list[Call]:
    calls = []
    for i, call in enumerate(usual_calls(make)):
        kind = torch.float64 if i % 2 else torch.float32
        calls.append(Call(Inputs(*call.inputs.args, out=kind), call.train, i))
    return calls


@case(calls=dtype_calls, make=lambda n: Inputs(torch.randn(n, 6), torch.randn(n, 5), out=torch.float32))
class DtypeArgument(Late):
    def forward(self, a, b, out):
        f, g = self.fa(a), self.fb(b)
        return self.head(torch.cat([f, g], 1)).to(out)


class Mode(enum.Enum):
    PLAIN = 1
    DOUBLE = 2


def enum_calls(make: MakeInputs) -> list[Call]:
    return [
        Call(Inputs(*call.inputs.args, mode=Mode.DOUBLE if i % 2 else Mode.PLAIN), call.train, i)
        for i, call in enumerate(usual_calls(make))
    ]


@case(calls=enum_calls)
class EnumArgument(Late):
    def forward(self, a, b, mode=Mode.PLAIN):
        f, g = self.fa(a), self.fb(b)
        if mode is Mode.DOUBLE:
            f = f * 2
        return self.head(torch.cat([f, g], 1))


def slice_calls(make: MakeInputs) -> list[Call]:
    return [
        Call(Inputs(*call.inputs.args, part=slice(0, 4) if i % 2 else slice(4, 8)), call.train, i)
        for i, call in enumerate(usual_calls(make))
    ]


@case(calls=slice_calls)
class SliceArgument(Late):
    def forward(self, a, b, part=slice(0, 4)):
        f, g = self.fa(a), self.fb(b)
        f = torch.cat([f[:, part], f[:, part]], 1)
        return self.head(torch.cat([f, g], 1))


def callable_calls(make: MakeInputs) -> list[Call]:
    return [
        Call(Inputs(*call.inputs.args, act=torch.tanh if i % 2 else torch.relu), call.train, i)
        for i, call in enumerate(usual_calls(make))
    ]


@case(calls=callable_calls)
class CallableArgument(Late):
    def forward(self, a, b, act=torch.relu):
        return self.head(torch.cat([act(self.fa(a)), act(self.fb(b))], 1))


def set_calls(make: MakeInputs) -> list[Call]:
    return [
        Call(Inputs(*call.inputs.args, drop={"a"} if i % 2 else {"b"}), call.train, i)
        for i, call in enumerate(usual_calls(make))
    ]


@case(calls=set_calls)
class SetArgument(Late):
    def forward(self, a, b, drop=frozenset()):
        f, g = self.fa(a), self.fb(b)
        if "a" in drop:
            f = f * 0.5
        if "b" in drop:
            g = g * 0.5
        return self.head(torch.cat([f, g], 1))


@functools.lru_cache(maxsize=8)
def cached_positions(length: int) -> torch.Tensor:
    return torch.arange(length, dtype=torch.float32).view(-1, 1) / length


def length_calls(make: MakeInputs) -> list[Call]:
    calls = []
    for i, (batch, length) in enumerate([(4, 4), (3, 6), (4, 9), (2, 4), (5, 12), (4, 4)]):
        torch.manual_seed(i)
        calls.append(Call(sequences(batch, length), i % 2 == 0, i))
    return calls


@case(make=sequences, calls=length_calls)
class CachedPositions(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        f = f + cached_positions(a.shape[1])
        return self.head(torch.cat([f, g], -1)).mean(1)


@case(make=sequences, calls=length_calls)
class Truncates(Late):
    def forward(self, a, b):
        if a.shape[1] > 8:
            a, b = a[:, :8], b[:, :8]
        f, g = self.fa(a), self.fb(b)
        return self.head(torch.cat([f, g], -1)).mean(1)


@case(make=sequences, calls=length_calls)
class RecurrentFusion(nn.Module):
    """A loop over time in which the modalities meet at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb = nn.Linear(6, 8), nn.Linear(5, 8)
        self.cell = nn.GRUCell(16, 7)
        self.head = nn.Linear(7, 2)

    def forward(self, a, b):
        h = a.new_zeros(a.size(0), 7)
        for t in range(a.size(1)):
            h = self.cell(torch.cat([self.fa(a[:, t]), self.fb(b[:, t])], dim=-1), h)
        return self.head(h)


@case(make=sequences, calls=length_calls)
class ScaledBySqrtLength(Late):
    def forward(self, a, b):
        f, g = self.fa(a).sum(1), self.fb(b).sum(1)
        return self.head(torch.cat([f / math.sqrt(a.shape[1]), g / b.size(1) ** 0.5], -1))


@case()
class EarlyExit(Late):
    def __init__(self) -> None:
        super().__init__()
        self.quick = nn.Linear(8, 3)

    def forward(self, a, b):
        f = self.fa(a)
        quick = self.quick(f)
        g = self.fb(b)
        out = self.head(torch.cat([f, g], 1))
        if not self.training and quick.softmax(-1).max() > 0.75:
            return quick
        return out


@case()
class GlobalSwitch(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        SWITCH["calls"] = SWITCH.get("calls", 0) + 1
        return self.head(torch.cat([f, g], 1)) * SWITCH["scale"]


SWITCH: dict[str, Any] = {"scale": 1.0}


@case()
class TopKByFloat(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        k = max(1, round(0.5 * a.shape[0]))
        h = torch.cat([f, g], 1)
        top = h.norm(dim=1).topk(k).indices
        return self.head(h), self.head(h[top])


@case()
class MaxOfBatch(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        h = torch.cat([f, g], 1)
        return self.head(h)[: max(4, a.shape[0] // 2)]


@case()
class OneHotOfBatch(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        h = torch.cat([f, g], 1)
        weights = torch.eye(len(h)) + torch.full((len(h), len(h)), 0.1)
        return self.head(weights @ h)


@case()
class OddBatchPadded(Late):
    def forward(self, a, b):
        f, g = self.fa(a), self.fb(b)
        h = torch.cat([f, g], 1)
        if len(h) % 2:
            h = F.pad(h, (0, 0, 0, 1))
        return self.head(h.view(-1, 2, 16).mean(1))


__all__ = ["Late", "sequences", "vectors"]
