"""Every kind of model that a capture must live with: the run is the model's own, its parts are seen, nothing stays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import regbn_surgery as rs
from regbn_surgery._trace import Trace, capture

from .replay import restored, same


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


class Two(nn.Module):
    """Two branches and a head; subclasses say what the branches are made of. Its cat is the one place to find."""

    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb = nn.Linear(5, 6), nn.Linear(7, 6)
        self.head = nn.Linear(2 * self.width, 3)

    def branches(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.fa(a), self.fb(b)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat(self.branches(a, b), 1))


class Siamese(Two):
    """One module on both branches, called twice each."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def branches(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        f, g = super().branches(a, b)
        return self.shared(self.shared(f)), self.shared(self.shared(g))


class Tied(Two):
    """One weight under two names, as a decoder tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(6, 6)
        self.more = nn.Linear(6, 6)
        self.more.weight = self.again.weight

    def branches(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        f, g = super().branches(a, b)
        return self.again(f), self.more(g)


class Containers(Two):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.by_name = nn.ModuleDict({"in": nn.Linear(6, 6), "out": nn.Linear(6, 6)})

    def branches(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        f, g = super().branches(a, b)
        for layer in self.layers:
            f = layer(f).relu()
        for name in ("in", "out"):
            g = self.by_name[name](g)
        return f, g


class Checkpointed(Two):
    def branches(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        f = checkpoint(self.fa, a, use_reentrant=False)
        return f, checkpoint(self.fb, b, use_reentrant=self.training)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 3


class CustomFunction(Two):
    def branches(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        f, g = super().branches(a, b)
        return _Doubled.apply(f), g


class Vmapped(Two):
    def branches(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.vmap(lambda row: self.fa(row).relu())(a), self.fb(b)


class Scripted(Two):
    def __init__(self) -> None:
        super().__init__()
        self.fa = torch.jit.trace(nn.Sequential(nn.Linear(5, 6), nn.ReLU()), normal(2, 5))


class Compiled(Two):
    def __init__(self) -> None:
        super().__init__()
        self.fa = torch.compile(nn.Sequential(nn.Linear(5, 6), nn.ReLU()), backend="eager", dynamic=True)


class Hooked(Two):
    def __init__(self) -> None:
        super().__init__()
        self.fa.register_forward_hook(lambda module, args, output: output * 2)
        self.fb.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


class Modes(Two):
    """Gradient modes and autocast, one in another."""

    def branches(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            f = self.fa(a)
            with torch.enable_grad(), torch.autocast("cpu", enabled=False):
                g = self.fb(b)
        return f.float(), g


class TorchLeaves(Two):
    """Recurrent layers, attention, a transformer, a bilinear form: all of them torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.bilinear = nn.Bilinear(6, 6, 6)

    def branches(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        f, g = super().branches(a, b)
        tokens = self.encoder(f[:, None].repeat(1, 3, 1))
        tokens, _ = self.attention(tokens, tokens, tokens)
        _, last = self.rnn(tokens)
        return last[0], self.bilinear(g, g)


class Packed(Two):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 6, batch_first=True)

    def branches(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        f, g = super().branches(a, b)
        tokens = f[:, None].repeat(1, 3, 1)
        lengths = torch.full((len(tokens),), 2)
        packed = pack_padded_sequence(tokens, lengths, batch_first=True, enforce_sorted=False)
        padded, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return padded[:, -1], g


class WritesInPlace(Two):
    def branches(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        f, g = super().branches(a, b)
        f = f.clone()
        f[:, :2] = 0.5
        f[:, 2:].mul_(3)
        f += 1
        return f.relu_(), g


class MadeInForward(Two):
    """Parameters and buffers that the first forward makes, as lazily built models do."""

    def branches(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        f, g = super().branches(a, b)
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.full((6,), 2.0))
            self.register_buffer("shift", torch.ones(6))
        return f * self.scale + self.shift, g


class Stashes(Two):
    """Keeps what it computed, on itself and in a dict: attributes are put back."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Tensor] = {}

    def branches(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        f, g = super().branches(a, b)
        self.last, self.seen["g"] = f, g
        return f, g


KINDS = (
    Two, Siamese, Tied, Containers, Checkpointed, CustomFunction, Vmapped, Scripted, Compiled, Hooked, Modes,
    TorchLeaves, Packed, WritesInPlace, MadeInForward, Stashes,
)  # fmt: skip
EXAMPLE = (normal(4, 5), normal(4, 7))


def traced(model: nn.Module, training: bool = False) -> tuple[Trace, Tensor]:
    model.train(training)
    with restored(model):
        return capture(model, tuple(x.clone() for x in EXAMPLE), {})


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_run_is_the_models_own(kind: Callable[[], nn.Module], training: bool) -> None:
    model = made(kind).train(training)
    with restored(model):
        expected = model(*EXAMPLE)
    _, output = traced(made(kind), training)
    same(output, expected)
    assert output.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_its_one_meeting_is_found_and_the_model_put_back(kind: Callable[[], nn.Module]) -> None:
    model = made(kind)
    state = copy.deepcopy(model.state_dict())
    attributes = {name: dict(module.__dict__) for name, module in model.named_modules()}
    (point,) = rs.inspect(model, EXAMPLE).fusion_points
    assert (point.kind, point.op, point.homes) == ("concat", "cat", (("a",), ("b",)))
    assert [(o.layout.batch_dim, o.layout.channel_dim) for o in point.operands] == [(0, 1), (0, 1)]
    same(model.state_dict(), state)
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == attributes


@pytest.mark.parametrize(
    ("kind", "leaves"),
    [
        (TorchLeaves, {"GRU", "MultiheadAttention", "TransformerEncoderLayer", "Bilinear", "Linear"}),
        (Packed, {"LSTM", "Linear"}),
        (Compiled, {"OptimizedModule", "Linear"}),
        (Scripted, {"TopLevelTracedModule", "Linear"}),
        (Siamese, {"Linear", "Tanh"}),
    ],
)
def test_leaves_are_single_calls(kind: Callable[[], nn.Module], leaves: set[str]) -> None:
    trace, _ = traced(made(kind))
    assert {op.name for op in trace.calls if op.is_module} == leaves


def test_each_call_of_a_shared_module_is_there() -> None:
    trace, _ = traced(made(Siamese))
    assert [op.module for op in trace.calls if op.name == "Tanh"] == ["shared.1"] * 4
    assert [frame.call for frame in trace.frames if frame.path == "shared"] == [0, 1, 2, 3]


def test_a_weight_under_two_names_goes_by_the_first() -> None:
    model = made(Tied)
    trace, _ = traced(model)
    assert [op.module for op in trace.calls if op.is_module] == ["fa", "fb", "again", "more", "head"]
    assert "more.weight" in model.state_dict()


@pytest.mark.parametrize("kind", [Checkpointed, Vmapped, Scripted, MadeInForward, WritesInPlace])
def test_regbn_goes_in_and_the_rest_stays(kind: Callable[[], nn.Module]) -> None:
    """Whatever way it takes: the self-check inside regbnify holds outputs and gradients to the original's."""
    rules = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "a"}]}
    model = rs.regbnify(made(kind), rules, EXAMPLE).train()
    output = model(*EXAMPLE)
    output.sum().backward()
    assert model.regbn_late.regbn.num_steps.item() == 1
    assert model.head.weight.grad is not None


class Nested(Two):
    """Ragged samples in nested tensors, whose sizes nobody may ask."""

    def branches(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        ragged = torch.nested.nested_tensor([a[0, :2], a[1]])
        return self.fa(a) + ragged.to_padded_tensor(0.0).mean(), self.fb(b)


def test_nested_tensors_do_not_stop_the_capture() -> None:
    found = rs.inspect(made(Nested), EXAMPLE)
    assert [point.homes for point in found.fusion_points] == [(("a",), ("b",))]
    assert any("cannot be followed" in note and "test_kinds.py" in note for note in found.notes)
