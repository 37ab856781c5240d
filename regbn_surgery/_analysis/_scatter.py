"""Where one stream's values are written into another's tensor: what is f, what is g, and which positions are whose.

Two spellings, told apart here. A call that chooses *positions* of a tensor that has content of its own (image tokens
over placeholder tokens, as in LLaVA): f is that content at the other positions, g what is written; whose sample a row
of the source belongs to, the call itself says by where it puts it. And a call that fills a *stretch* of a tensor whose
other stretches have been filled before (`out[:, :n] = a; out[:, n:] = b`): a concatenation without a `cat`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .._trace import Call, Trace, tensor_of
from .._types import Layout
from . import _axes as ax

Key = tuple[str, str, int, int]


@dataclass(frozen=True)
class Scatter:
    """How to do the call in other words: positions of its two tensors, and which earlier calls filled the rest.

    `written` is empty where the tensor's own content is the other side; else it names the calls that filled its other
    stretches along `axis`, in that order.
    """

    into: int
    source: int
    inplace: bool
    written: tuple[Key, ...] = ()
    axis: int = 0


@dataclass(frozen=True)
class ScatterSides:
    """The scatter, and (shape, layout) of the content and of the source; `obstacle` where RegBN cannot go there."""

    scatter: Scatter
    into: tuple[tuple[int, ...], Layout]
    source: tuple[tuple[int, ...], Layout]
    obstacle: str | None = None


def scatter_sides(op: Call, positions: tuple[int, ...], trace: Trace, layout: Callable[[int], Layout]) -> ScatterSides:
    """The two sides of a scatter whose operands at `positions` meet."""
    into, source = op.inputs[0], op.inputs[positions[-1]]
    scatter = Scatter(0, positions[-1], op.inplace)
    shape, own = trace.tensors[into].shape, layout(into)
    as_they_are = ScatterSides(scatter, (shape, own), (trace.tensors[source].shape, layout(source)))
    if positions[0] != 0 or len(positions) != 2:
        return replace(as_they_are, obstacle=f"the tensor that {op.name} writes into carries no modality of its own")
    if not op.row.does("puts") or op.kwargs.get("accumulate") or op.kwargs.get("reduce") or len(op.args) > 4:
        return replace(as_they_are, obstacle=f"{op.name} does more than replace values")
    stretch = _stretch(op, len(shape))
    filled = _filled_before(op, trace, stretch[0]) if stretch is not None else []
    if stretch is not None and filled:
        return _stretches(as_they_are, op, filled, stretch[0], trace, layout)
    return _by_position(as_they_are, op, stretch, trace)


def _assigns(op: Call) -> bool:
    """`x[...] = y`."""
    return op.row.does("puts") and op.row.mask.get(1) == "out"


def _stretch(op: Call, rank: int) -> tuple[int, slice] | None:
    """(axis, slice) of an assignment to one stretch of one axis."""
    if not _assigns(op):
        return None
    entries = ax.index_entries(op, rank)
    if entries is None or any(entry is None for entry in entries):
        return None
    part = [(i, entry) for i, entry in enumerate(entries) if entry != slice(None)]
    if len(part) != 1 or not isinstance(part[0][1], slice) or part[0][1].step not in (None, 1):
        return None
    return part[0]


def _filled_before(op: Call, trace: Trace, axis: int) -> list[tuple[tuple[int, int], Call]]:
    """(stretch, call) of earlier assignments of features to other stretches of the same tensor, by place."""
    size = trace.tensors[op.inputs[0]].shape[axis]
    taken: list[tuple[tuple[int, int], Call]] = []
    for other in trace.calls[: op.index + 1]:
        if other.frame != op.frame or not _assigns(other) or other.inputs[:1] != op.inputs[:1]:
            continue
        found = _stretch(other, len(trace.tensors[op.inputs[0]].shape))
        if found is None or found[0] != axis or tensor_of(other.args[2]) is None:
            continue
        low, high, _ = found[1].indices(size)
        if low < high and all(high <= a or b <= low for (a, b), _ in taken):
            taken.append(((low, high), other))
    return sorted(((place, other) for place, other in taken if other is not op), key=lambda item: item[0])


def _stretches(
    sides: ScatterSides,
    op: Call,
    filled: list[tuple[tuple[int, int], Call]],
    axis: int,
    trace: Trace,
    layout: Callable[[int], Layout],
) -> ScatterSides:
    keys = tuple(other.key for _, other in filled)
    shape = list(trace.tensors[op.inputs[0]].shape)
    shape[axis] = sum(high - low for (low, high), _ in filled)
    own = sides.into[1]
    if not own.known:  # an empty tensor that nobody has read yet lies as what was written into it
        own = next((layout(o.inputs[-1]) for _, o in filled if layout(o.inputs[-1]).known), own)
    source = sides.source
    if not source[1].known and len(source[0]) == len(shape):
        source = (source[0], own)
    obstacle = None
    if own.batch_dim == axis:
        obstacle = "the call writes to some of the samples of a batch"
    elif len(source[0]) != len(shape):
        obstacle = f"what is written has {len(source[0])} axes and is broadcast over the {len(shape)} it goes into"
    scatter = replace(sides.scatter, written=keys, axis=axis)
    return ScatterSides(scatter, (tuple(shape), own), source, obstacle)


def _by_position(sides: ScatterSides, op: Call, stretch: tuple[int, slice] | None, trace: Trace) -> ScatterSides:
    shape, own = sides.into
    if not own.known:
        return sides
    assert own.batch_dim is not None, "a known layout has a batch axis"
    assert own.channel_dim is not None, "a known layout has a channel axis"
    count = math.prod(sides.source[0])
    rows = max(count // (shape[own.batch_dim] * shape[own.channel_dim]), 1)
    unfolded = [1] * len(shape)
    unfolded[own.batch_dim], unfolded[own.channel_dim] = shape[own.batch_dim], shape[own.channel_dim]
    if own.spatial_dims:
        unfolded[own.spatial_dims[0]] = rows
    words = f"rows of the source belong to the sample into which {op.name} writes them"
    source = (tuple(unfolded), replace(own, sequence=True, evidence=(*own.evidence, words)))
    return replace(sides, source=source, obstacle=_no_positions(op, own, stretch, trace))


def _no_positions(op: Call, own: Layout, stretch: tuple[int, slice] | None, trace: Trace) -> str | None:
    """Why the call does not choose positions of the samples of a batch."""
    if not own.spatial_dims:
        return f"{op.name} selects single channels: the tensor it writes into has no positions besides its channels"
    if stretch is not None and stretch[0] == own.channel_dim:
        return f"{op.name} writes to some of the channels of a tensor whose other channels no call has filled"
    if stretch is not None and stretch[0] == own.batch_dim:
        return "the call writes to some of the samples of a batch"
    index = op.args[1] if _assigns(op) else None
    info = tensor_of(index)
    if info is not None and (info.dtype != torch.bool or len(info.shape) < 2):
        return "the call writes to some of the samples of a batch"
    return None
