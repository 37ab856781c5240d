"""What is said about the axes of an operation's result holds for what torch does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from regbn_surgery._analysis import _axes as ax
from tests.trace.replay import captured, make

Function = Callable[[Tensor], Any]
SHAPE = (2, 3, 4, 5)


def moved(function: Function, x: Tensor) -> ax.Movement | None:
    """What the library says of the last operation of `function`, as it is recorded in a run."""
    trace = captured(make(lambda self, x: function(x)), x)
    op = trace.calls[-1]
    return ax.movement(op, tuple(x.shape), trace.tensors[op.outputs[0]].shape)


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def sources(function: Function, shape: tuple[int, ...]) -> list[set[int]]:
    """For each axis of the result the axes of the operand with which it varies: every element says where it is from."""
    result: list[set[int]] = []
    for axis, size in enumerate(shape):
        where = torch.arange(1.0, size + 1).reshape([-1 if i == axis else 1 for i in range(len(shape))]).expand(shape)
        out = first(function(where.clone()))
        result = result or [set() for _ in out.shape]
        for i in range(out.dim()):
            if not torch.allclose(out, out.narrow(i, 0, 1).expand_as(out)):
                result[i].add(axis)
    return result


def assert_sources(function: Function, shape: tuple[int, ...]) -> None:
    movement = moved(function, torch.zeros(shape))
    assert movement is not None
    seen = [{axis for axis in source if shape[axis] > 1} for source in movement.source]
    out = first(function(torch.zeros(shape)))
    assert len(seen) == out.dim()
    for i, (said, found) in enumerate(zip(seen, sources(function, shape), strict=True)):
        if out.shape[i] > 1:
            assert said == found, f"axis {i} of {tuple(out.shape)} from {shape}: said {said}, found {found}"


# -- axes that move ---------------------------------------------------------------------------------------------------

axes4 = st.integers(-4, 3)


@st.composite
def indices(draw: st.DrawFn) -> Any:
    entries: list[Any] = []
    for size in SHAPE[: draw(st.integers(1, 4))]:
        kind = draw(st.sampled_from(["all", "int", "slice", "none"]))
        if kind == "none":
            entries.append(None)
        if kind == "int":
            entries.append(draw(st.integers(-size, size - 1)))
        elif kind == "slice":
            entries.append(slice(draw(st.integers(0, size - 2)), None, draw(st.sampled_from([None, 1, 2]))))
        else:
            entries.append(slice(None))
    if draw(st.booleans()):
        entries.insert(draw(st.integers(0, len(entries))), Ellipsis)
        entries = entries[: entries.index(Ellipsis) + 1] if len(entries) > 4 else entries
    return tuple(entries) if len(entries) > 1 or draw(st.booleans()) else entries[0]


@st.composite
def regrouped(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape, and one that merges and splits its axes: what a `view` between layers does."""
    atoms = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))

    def grouped() -> tuple[int, ...]:
        cuts = sorted(draw(st.sets(st.integers(1, len(atoms)), max_size=3)) | {len(atoms)})
        return tuple(math.prod(atoms[a:b]) for a, b in zip([0, *cuts], cuts, strict=False))

    return grouped(), grouped()


@given(regrouped())
@settings(max_examples=40, deadline=None)
def test_views_that_split_and_merge(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    shape, result = shapes
    assert_sources(lambda x: x.reshape(result), shape)


def test_the_examples_of_view_map() -> None:
    assert ax.view_map((2, 5, 12), (2, 5, 3, 4)) == ((0,), (1,), (2,), (2,))
    assert ax.view_map((2, 4, 7, 7), (2, 196)) == ((0,), (1, 2, 3))
    assert ax.view_map((2, 1, 5), (2, 5)) == ((0,), (2,))
    assert ax.view_map((2, 5), (2, 1, 5)) == ((0,), (), (1,))
    assert ax.view_map((2, 0), (0, 2)) == ((0,), (1,))


@given(st.permutations(range(4)), axes4, axes4)
@settings(max_examples=12, deadline=None)
def test_permutations(order: list[int], a: int, b: int) -> None:
    assert_sources(lambda x: x.permute(order), SHAPE)
    assert_sources(lambda x: torch.permute(x, dims=tuple(order)), SHAPE)
    assert_sources(lambda x: x.permute(*[i - 4 for i in order]), SHAPE)
    assert_sources(lambda x: x.transpose(a, b), SHAPE)
    assert_sources(lambda x: torch.transpose(x, dim0=a, dim1=b), SHAPE)
    assert_sources(lambda x: x.movedim(a, b), SHAPE)
    assert_sources(lambda x: x.moveaxis(tuple(order[:2]), (a % 4, (a + 1) % 4)), SHAPE)
    assert_sources(lambda x: x.swapaxes(axis0=a, axis1=b), SHAPE)


@given(indices())
@settings(max_examples=50, deadline=None)
def test_basic_indexing(index: Any) -> None:
    assert_sources(lambda x: x[index], SHAPE)


@given(axes4, st.integers(0, 1))
@settings(max_examples=8, deadline=None)
def test_parts_of_one_axis(dim: int, start: int) -> None:
    assert_sources(lambda x: x.select(dim, start), SHAPE)
    assert_sources(lambda x: x.narrow(dim, start, 1), SHAPE)
    assert_sources(lambda x: x.split(1, dim), SHAPE)
    assert_sources(lambda x: x.split([1, SHAPE[dim] - 1], dim=dim), SHAPE)
    assert_sources(lambda x: torch.chunk(x, 2, dim=dim), SHAPE)
    assert_sources(lambda x: x.unbind(dim), SHAPE)
    assert_sources(lambda x: x.tensor_split(2, dim=dim), SHAPE)
    assert_sources(lambda x: x.index_select(dim, torch.tensor([1, 0, 1])), SHAPE)
    assert_sources(lambda x: x.unsqueeze(dim), SHAPE)
    assert_sources(lambda x: torch.stack([x, x], dim=dim), SHAPE)


@given(st.sets(st.integers(0, 3), min_size=1, max_size=3), st.booleans(), st.sampled_from(["sum", "mean", "amax"]))
@settings(max_examples=12, deadline=None)
def test_reductions(dims: set[int], keepdim: bool, name: str) -> None:
    function = getattr(torch, name)
    assert_sources(lambda x: function(x, tuple(dims), keepdim=keepdim), SHAPE)
    assert_sources(lambda x: function(x, dim=[d - 4 for d in dims], keepdim=keepdim), SHAPE)
    assert_sources(lambda x: x.max(dim=min(dims), keepdim=keepdim).values, SHAPE) if not keepdim else None
    assert_sources(lambda x: x.norm(dim=min(dims)), SHAPE)


OTHERS: list[tuple[Function, tuple[int, ...]]] = [
    (lambda x: x.flatten(1), SHAPE),
    (lambda x: torch.flatten(x, 1, 2), SHAPE),
    (lambda x: x.unflatten(2, (2, 2)), SHAPE),
    (lambda x: x.squeeze(1), (2, 1, 4)),
    (lambda x: x.squeeze(), (2, 1, 4, 1)),
    (lambda x: x.T, (3, 4)),
    (lambda x: x.t(), (3, 4)),
    (lambda x: x.mT, SHAPE),
    (lambda x: x.expand(7, -1, 4), (1, 3, 1)),
    (lambda x: x.expand(5, 2, 3), (2, 3)),
    (lambda x: x.broadcast_to(5, 2, 3), (2, 3)),
    (lambda x: x.repeat(4, 1, 1), (1, 3, 2)),
    (lambda x: x[:, torch.tensor([0, 2])], SHAPE),
    (lambda x: x[torch.tensor([0, 1, 1])], SHAPE),
    (lambda x: x[torch.ones(2, 3, dtype=torch.bool)], SHAPE),
    (lambda x: x + torch.zeros(2, 3, 1, 1), SHAPE),
    (lambda x: x * torch.ones(6, 2, 3), (2, 3)),
    (lambda x: x.float().clone().detach(), SHAPE),
    (lambda x: F.dropout(x, 0.0), SHAPE),
]


@pytest.mark.parametrize(("function", "shape"), OTHERS, ids=range(len(OTHERS)))
def test_other_movements(function: Function, shape: tuple[int, ...]) -> None:
    assert_sources(function, shape)


# -- axes that are computed along -------------------------------------------------------------------------------------


def mixed(function: Function, x: Tensor) -> set[int]:
    """Axes along which a change at one position of the operand is felt at another position of the result."""
    with torch.no_grad():
        before = first(function(x))
        found = set()
        for axis in range(x.dim()):
            if before.shape[axis] != x.shape[axis]:
                found.add(axis)
                continue
            changed = x.clone()
            changed.select(axis, 0).mul_(-1.7).add_(2.5)
            felt = (first(function(changed)) - before).abs() > 1e-7
            if felt.narrow(axis, 1, felt.shape[axis] - 1).any():
                found.add(axis)
        return found


torch.manual_seed(0)
TOKENS, MAPS = torch.randn(2, 6, 4), torch.randn(2, 4, 6, 6)


class Attends(nn.MultiheadAttention):
    """Self-attention as a function of one tensor."""

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x, x, x)


Attends.__module__ = "torch.nn.modules.activation"  # a leaf, as torch's own
Attends.__name__ = "MultiheadAttention"


BACKWARDS = torch.arange(5, -1, -1)


def seeded_gumbel(x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return F.gumbel_softmax(x, dim=1)


COMPUTATIONS: list[tuple[str, Any, Tensor]] = [
    ("Linear", nn.Linear(4, 4), TOKENS),
    ("Linear to another width", nn.Linear(4, 7), TOKENS),
    ("linear", lambda x: F.linear(x, torch.ones(4, 4)), TOKENS),
    ("Conv1d", nn.Conv1d(6, 6, 3, padding=1), TOKENS),
    ("Conv2d", nn.Conv2d(4, 4, 3, padding=1), MAPS),
    ("ConvTranspose2d", nn.ConvTranspose2d(4, 4, 3, padding=1), MAPS),
    ("LayerNorm", nn.LayerNorm(4), TOKENS),
    ("LayerNorm over two", nn.LayerNorm((6, 4)), TOKENS),
    ("layer_norm", lambda x: F.layer_norm(x, (6, 4)), TOKENS),
    ("RMSNorm", nn.RMSNorm(4), TOKENS),
    ("BatchNorm2d", nn.BatchNorm2d(4).eval(), MAPS),
    ("GroupNorm", nn.GroupNorm(2, 4), MAPS),
    ("InstanceNorm2d", nn.InstanceNorm2d(4), MAPS),
    ("softmax", lambda x: x.softmax(1), TOKENS),
    ("softmax by name", lambda x: F.softmax(x, dim=-2), TOKENS),
    ("log_softmax", lambda x: F.log_softmax(x, dim=-1), TOKENS),
    ("cumsum", lambda x: x.cumsum(1), TOKENS),
    ("glu", lambda x: F.glu(x, dim=1), TOKENS),
    ("normalize", lambda x: F.normalize(x, dim=1), TOKENS),
    ("normalize by position", lambda x: F.normalize(x, 2, 1), TOKENS),
    ("AvgPool2d", nn.AvgPool2d(3, 1, 1), MAPS),
    ("AdaptiveAvgPool2d", nn.AdaptiveAvgPool2d(3), MAPS),
    ("interpolate", lambda x: F.interpolate(x, scale_factor=2.0), MAPS),
    ("GRU batch first", nn.GRU(4, 4, batch_first=True), TOKENS),
    ("LSTM", nn.LSTM(4, 4), TOKENS),
    ("attention", Attends(4, 2, batch_first=True), TOKENS),
    ("attention, sequence first", Attends(4, 2), TOKENS),
    ("TransformerEncoderLayer", nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True).eval(), TOKENS),
    ("relu", F.relu, TOKENS),
    ("add", lambda x: x + 1, TOKENS),
    ("sort", lambda x: x.sort(dim=1).values, TOKENS),
    ("Softmax", nn.Softmax(dim=1), TOKENS),
    ("Softmax, last axis", nn.Softmax(-1), TOKENS),
    ("Softmax2d", nn.Softmax2d(), MAPS),
    ("GLU", nn.GLU(dim=1), TOKENS),
    ("gumbel_softmax", lambda x: seeded_gumbel(x), TOKENS),
    ("normalize by default", lambda x: F.normalize(x), TOKENS),
    ("cummax", lambda x: x.cummax(1).values, TOKENS),
    ("cumprod", lambda x: x.cumprod(dim=1), TOKENS),
    ("topk", lambda x: x.topk(6, 1).values, TOKENS),
    ("topk of the last axis", lambda x: x.topk(4).values, TOKENS),
    ("flip", lambda x: x.flip(1), TOKENS),
    ("flip two", lambda x: x.flip(1, 2), TOKENS),
    ("flip by name", lambda x: torch.flip(x, dims=(1, 2)), TOKENS),
    ("fliplr", torch.fliplr, TOKENS),
    ("roll", lambda x: x.roll(1, 1), TOKENS),
    ("roll by name", lambda x: torch.roll(x, shifts=(1, 2), dims=(1, 2)), TOKENS),
    ("fft", lambda x: torch.fft.fft(x, dim=1).real, TOKENS),
    ("fft of the last axis", lambda x: torch.fft.fft(x).real, TOKENS),
    ("fft2", lambda x: torch.fft.fft2(x).real, MAPS),
    ("fftshift", lambda x: torch.fft.fftshift(x, 1), TOKENS),
    ("channel_shuffle", lambda x: F.channel_shuffle(x, 2), MAPS),
    ("gather", lambda x: x.gather(1, BACKWARDS[:, None].expand(2, 6, 4)), TOKENS),
    ("take_along_dim", lambda x: torch.take_along_dim(x, BACKWARDS[None, :, None], 1), TOKENS),
    ("index_select", lambda x: x.index_select(1, BACKWARDS), TOKENS),
    ("index_select by name", lambda x: torch.index_select(x, dim=-2, index=BACKWARDS), TOKENS),
    ("tensor index", lambda x: x[:, BACKWARDS], TOKENS),
    ("list index", lambda x: x[:, [5, 4, 3, 2, 1, 0]], TOKENS),
    ("tensor index behind an ellipsis", lambda x: x[..., BACKWARDS, :], TOKENS),
    ("strided slice", lambda x: x[:, ::2], TOKENS),
    ("pad", lambda x: F.pad(x, (1, -1)), TOKENS[:, 0]),
    ("pad two", lambda x: F.pad(x, (0, 0, 1, -1)), TOKENS),
    ("ConstantPad1d", nn.ConstantPad1d((1, -1), 0.0), TOKENS[:, 0]),
    ("max_pool1d of [C, L]", lambda x: F.max_pool1d(x, 3, 1, 1), TOKENS[0]),
]


@pytest.mark.parametrize(
    ("name", "function", "x"),
    [pytest.param(*case, id=case[0]) for case in COMPUTATIONS],
)
def test_axes_that_are_computed_along(name: str, function: Any, x: Tensor) -> None:
    trace = captured(make(lambda self, x: function(x), leaf=function if isinstance(function, nn.Module) else None), x)
    op = next(op for op in reversed(trace.calls) if op.name != "real")
    movement = ax.movement(op, tuple(x.shape), trace.tensors[op.outputs[0]].shape)
    assert movement is not None
    felt = mixed(function, x)
    assert felt <= movement.mixed | {i for i in range(x.dim()) if not any(i in s for s in movement.source)}, felt
    if not felt and name in ("relu", "add", "BatchNorm2d"):
        assert movement.mixed == frozenset()
    kept = [
        i for i in range(x.dim()) if movement.source[i] == (i,) and x.shape[i] == trace.tensors[op.outputs[0]].shape[i]
    ]
    assert 0 in kept or name in ("Conv1d",) or "first" in name or name == "LSTM", "the batch axis is kept"


def test_what_is_not_known_is_not_guessed() -> None:
    assert moved(lambda x: torch.cdist(x, x), TOKENS) is None
    assert moved(lambda x: torch.linalg.svdvals(x), TOKENS) is None
    assert moved(lambda x: torch.linalg.inv(x), torch.eye(4).repeat(2, 1, 1)) is None


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "dim"),
    [
        (lambda x: torch.cat([x, x]), 0), (lambda x: torch.cat([x, x], -1), 2), (lambda x: torch.cat((x, x), dim=1), 1),
        (lambda x: torch.concat([x, x], axis=-2), 1), (lambda x: torch.hstack([x, x]), 1),
        (lambda x: torch.vstack([x, x]), 0), (lambda x: torch.dstack([x, x]), 2), (lambda x: torch.stack([x, x], 1), 1),
    ],
)  # fmt: skip
def test_the_axis_of_a_concatenation(function: Function, dim: int) -> None:
    trace = captured(make(lambda self, x: function(x)), TOKENS)
    rank = len(trace.tensors[trace.calls[-1].outputs[0]].shape)
    assert ax.concat_dim(trace.calls[-1], rank) == dim


@given(st.lists(st.integers(1, 4), max_size=3), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_broadcasting_is_torchs(shape: list[int], result: list[int]) -> None:
    try:
        expected = tuple(torch.zeros(shape).expand(result).shape) == tuple(result)
    except RuntimeError:
        expected = False
    assert ax.is_broadcast(tuple(shape), tuple(result)) == expected
