"""How an operation moves the axes of its main operand.

Lineage (which half of a concatenation is this?), attention scores (whose positions are these?) and layouts (where is
the channel axis now?) all ask the same question, so it is answered once, here: for every axis of the result, which
axes of the operand it comes from, and which axes of the operand the operation mixes along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .._trace import Call, tensor_of

AxisMap = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Movement:
    """`source[i]` are the operand's axes that axis i of the result covers; `mixed` those it computes across."""

    source: AxisMap
    mixed: frozenset[int]


def argument(op: Call, position: int, name: str, default: Any = None) -> Any:
    """An argument of the recorded call, counted as the call was written (the tensor itself is 0)."""
    if name in op.kwargs:
        return op.kwargs[name]
    return op.args[position] if position < len(op.args) else default


def movement(op: Call, shape: tuple[int, ...], result: tuple[int, ...]) -> Movement | None:
    """How `op` takes an operand of `shape` to a result of shape `result`; None where that is not known."""
    axes = op.row.axes
    if axes == "view":
        return Movement(view_map(shape, result), frozenset())
    if op.row.does("permutes"):
        order = _permutation(op, len(shape))
        return None if order is None else Movement(tuple((axis,) for axis in order), frozenset())
    if axes in ("index", "select", "narrow", "index_select"):
        source = _index_map(op, shape, result)
        return None if source is None else Movement(source, _reordered(op, shape, result))
    if op.row.does("splits"):
        dim = split_dim(op, len(shape))
        kept = [(i,) for i in range(len(shape))]
        if axes == "unbind":
            kept.pop(dim)
        return Movement(tuple(kept), frozenset())
    if axes == "reduce":
        return _reduction(op, shape, result)
    if axes == "stretch":
        return Movement(broadcast_map(shape, result), frozenset())
    if axes == "stack":
        dim = int(argument(op, 1, "dim", 0)) % len(result)
        same = _same_axes(shape)
        return Movement((*same[:dim], (), *same[dim:]), frozenset())
    return _computation(op, shape, result)


def _computation(op: Call, shape: tuple[int, ...], result: tuple[int, ...]) -> Movement | None:
    axes, same, last = op.row.axes, _same_axes(shape), len(shape) - 1
    if axes in ("cat", "opaque"):
        return None
    if axes == "table":
        return Movement((*same, ()), frozenset())
    if axes == "each":
        return (
            Movement(broadcast_map(shape, result), frozenset()) if op.inputs and is_broadcast(shape, result) else None
        )
    if axes == "layer_norm":
        return Movement(same, frozenset(range(len(shape) - _normalized_rank(op), len(shape))))
    if axes == "batch_norm":
        return Movement(same, frozenset())
    if axes == "group_norm":
        return Movement(same, frozenset(range(1, len(shape))))
    if len(result) != len(shape):
        return None
    if axes == "last":
        return Movement((*same[:-1], ()), frozenset({last}))
    if axes == "convolution":
        return Movement(((0,), (), *same[2:]), frozenset(range(1, len(shape))))
    if axes in ("recurrent", "attention"):
        return Movement((*same[:-1], ()), frozenset(range(len(shape))) - {_sequence_batch_axis(op)})
    over_space = spatial_axes(op, len(shape))
    return Movement(same, _along(op, len(shape)) if over_space is None else over_space)


def spatial_axes(op: Call, rank: int) -> frozenset[int] | None:
    """The axes that pooling, resizing and padding work on; None for other calls."""
    last = frozenset(range(max(rank - op.row.spatial, 0), rank))
    if op.row.axes == "pad":
        widths = argument(op, 1, "pad", ())
        return frozenset(range(max(rank - len(widths) // 2, 0), rank))
    if op.row.axes == "pad_sides":
        return last
    return frozenset(range(2, rank)) | last if op.row.axes == "pool" else None


def _along(op: Call, rank: int) -> frozenset[int]:
    """The axes a softmax, a sort, a flip, a Fourier transform ... works along."""
    if op.row.axes == "fixed":
        return frozenset({op.row.dim % rank})
    by_rank = op.row.default == "rank"
    default = -1 if by_rank else op.row.default
    if op.is_module:
        dims = op.traits.get("dim", default)
    elif len(op.args) > 2 and all(type(dim) is int for dim in op.args[1:]) and op.row.dim == 1:
        dims = op.args[1:]  # `x.flip(1, 2)`
    else:
        dims = next((op.kwargs[name] for name in ("dim", "dims", "axis") if name in op.kwargs), None)
        dims = argument(op, op.row.dim, "dim", default) if dims is None else dims
    if dims is None and by_rank:  # torch chooses the axis by the rank (`_get_softmax_dim`)
        dims = 0 if rank in (0, 1, 3) else 1
    if isinstance(dims, int):
        dims = (dims,)
    if not isinstance(dims, tuple | list):
        return frozenset(range(rank))
    return frozenset(int(dim) % rank for dim in dims) if rank else frozenset()


def view_map(shape: tuple[int, ...], result: tuple[int, ...]) -> AxisMap:
    """Which operand axes each axis of a reshaped tensor covers, by where they lie in memory order.

    >>> view_map((2, 5, 12), (2, 5, 3, 4))
    ((0,), (1,), (2,), (2,))
    >>> view_map((2, 4, 7, 7), (2, 196))
    ((0,), (1, 2, 3))
    """
    if 0 in shape:
        return tuple((i,) if i < len(shape) else () for i in range(len(result)))
    spans = _spans(shape)
    covered: list[tuple[int, ...]] = []
    for low, high in _spans(result):
        if low == high:  # size 1: the operand's size-1 axis at the same place, if there is one
            same = [i for i, span in enumerate(spans) if span == (low, high)]
            used = {axis for axes in covered for axis in axes}
            covered.append(next(((i,) for i in same if i not in used), ()))
        else:
            covered.append(tuple(i for i, (a, b) in enumerate(spans) if a < high and low < b))
    return tuple(covered)


def _spans(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """For each axis the strides it covers: from its own stride to that of the axis before it."""
    spans, stride = [], 1
    for size in reversed(shape):
        spans.append((stride, stride * size))
        stride *= size
    return spans[::-1]


def is_broadcast(shape: tuple[int, ...], result: tuple[int, ...]) -> bool:
    if len(shape) > len(result):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(result), strict=False))


def broadcast_map(shape: tuple[int, ...], result: tuple[int, ...]) -> AxisMap:
    """Axes aligned from the right; an axis of size 1 that was stretched is a new one."""
    shift = len(result) - len(shape)
    return tuple((i - shift,) if i >= shift and shape[i - shift] == result[i] else () for i in range(len(result)))


def split_dim(op: Call, rank: int) -> int:
    axes = op.row.axes
    if axes in ("hsplit", "vsplit"):
        return 1 if axes == "hsplit" and rank > 1 else 0
    return int(argument(op, op.row.dim, "dim", op.row.default)) % rank


def concat_dim(op: Call, rank: int) -> int:
    axes = op.row.axes
    if axes == "hstack":
        return 1 if rank > 1 else 0
    if axes in ("vstack", "dstack"):
        return 0 if axes == "vstack" else 2
    return int(argument(op, 1, "dim", argument(op, 1, "axis", 0))) % rank


def reduced_dims(op: Call, rank: int) -> tuple[int, ...]:
    position = op.row.dim
    dims = argument(op, position, "dim", argument(op, position, "axis"))
    if dims is None:
        return tuple(range(rank))
    if position == 1 and len(op.args) > 2 and all(type(dim) is int for dim in op.args[1:]):
        dims = op.args[1:]  # `x.mean(1, 2)`
    if isinstance(dims, bool) or tensor_of(dims) is not None:
        return ()
    many = dims if isinstance(dims, tuple | list) else (dims,)
    return tuple(sorted(int(dim) % rank for dim in many)) if rank else ()


def _reduction(op: Call, shape: tuple[int, ...], result: tuple[int, ...]) -> Movement | None:
    if len(op.inputs) > 1:  # max(a, b) is elementwise
        return Movement(broadcast_map(shape, result), frozenset()) if is_broadcast(shape, result) else None
    dims = reduced_dims(op, len(shape))
    if len(result) == len(shape):
        return Movement(tuple(() if i in dims else (i,) for i in range(len(shape))), frozenset())
    kept = tuple((i,) for i in range(len(shape)) if i not in dims)
    return Movement(kept, frozenset()) if len(kept) == len(result) else None


def _permutation(op: Call, rank: int) -> tuple[int, ...] | None:
    order = list(range(rank))
    axes = op.row.axes
    if axes == "reverse" or (axes == "matrix" and rank == 2):
        return tuple(reversed(order))
    if axes == "matrix":
        return tuple(order)
    if axes == "swap_last":
        order[-1], order[-2] = order[-2], order[-1]
        return tuple(order)
    if axes == "order":
        dims = op.kwargs.get("dims", op.args[1:])
        if len(dims) == 1 and isinstance(dims[0], tuple | list):
            dims = dims[0]
        return tuple(int(dim) % rank for dim in dims)
    if axes == "move":
        return _moved(op, rank)
    first = argument(op, 1, "dim0", argument(op, 1, "axis0"))
    second = argument(op, 2, "dim1", argument(op, 2, "axis1"))
    if first is None or second is None:
        return None
    a, b = int(first) % rank, int(second) % rank
    order[a], order[b] = order[b], order[a]
    return tuple(order)


def _moved(op: Call, rank: int) -> tuple[int, ...]:
    source, target = argument(op, 1, "source"), argument(op, 2, "destination")
    sources = [int(x) % rank for x in (source if isinstance(source, tuple | list) else (source,))]
    targets = [int(x) % rank for x in (target if isinstance(target, tuple | list) else (target,))]
    placed = dict(zip(targets, sources, strict=True))
    rest = iter(i for i in range(rank) if i not in sources)
    return tuple(placed[i] if i in placed else next(rest) for i in range(rank))


def index_entries(op: Call, rank: int) -> list[Any] | None:
    """The entries of `x[...]` with the ellipsis spelled out; None where tensors index it."""
    if op.row.axes == "select":
        entries: list[Any] = [slice(None)] * rank
        entries[int(argument(op, 1, "dim")) % rank] = int(argument(op, 2, "index"))
        return entries
    if op.row.axes == "narrow":
        entries = [slice(None)] * rank
        start, length = argument(op, 2, "start"), argument(op, 3, "length")
        if not isinstance(start, int):
            return None
        entries[int(argument(op, 1, "dim")) % rank] = slice(start, start + int(length))
        return entries
    if op.row.axes == "index_select":
        return None
    filled = _spelled_out(op, rank)
    if any(not (entry is None or isinstance(entry, int | slice)) or isinstance(entry, bool) for entry in filled):
        return None
    return filled


def _spelled_out(op: Call, rank: int) -> list[Any]:
    index = op.args[1]
    entries = list(index) if isinstance(index, tuple) else [index]
    taken = sum(entry is not None and entry is not Ellipsis for entry in entries)
    filled: list[Any] = []
    for entry in entries:
        filled.extend([slice(None)] * (rank - taken) if entry is Ellipsis else [entry])
    filled.extend([slice(None)] * (rank - sum(entry is not None for entry in filled)))
    return filled


def _reordered(op: Call, shape: tuple[int, ...], result: tuple[int, ...]) -> frozenset[int]:
    """Axes of which an index takes anything but one stretch: a stretch of the result may be from anywhere."""
    rank = len(shape)
    if op.row.axes == "index_select" or (op.row.axes == "narrow" and not isinstance(argument(op, 2, "start"), int)):
        return frozenset({int(argument(op, 1, "dim")) % rank})
    if op.row.axes != "index":
        return frozenset()
    if tensor_of(op.args[1]) is not None:  # a mask takes as many axes as it has
        return frozenset(range(max(rank - len(result) + 1, 1)))
    entries = [entry for entry in _spelled_out(op, rank) if entry is not None]
    return frozenset(
        axis
        for axis, entry in enumerate(entries)
        if (entry.step not in (None, 1) if isinstance(entry, slice) else not isinstance(entry, int))
    )


def _index_map(op: Call, shape: tuple[int, ...], result: tuple[int, ...]) -> AxisMap | None:
    if op.row.axes == "index_select":
        return _same_axes(shape)
    entries = index_entries(op, len(shape))
    if entries is None:
        return _tensor_index_map(op, shape, result)
    source: list[tuple[int, ...]] = []
    axis = 0
    for entry in entries:
        if entry is None:
            source.append(())
            continue
        if isinstance(entry, slice):
            source.append((axis,))
        axis += 1
    return tuple(source)


def _tensor_index_map(op: Call, shape: tuple[int, ...], result: tuple[int, ...]) -> AxisMap | None:
    """`x[mask]` joins the leading axes that the mask has; `x[ids]` puts the axes of the ids in place of the first."""
    if len(shape) == len(result):
        return _same_axes(shape)
    if tensor_of(op.args[1]) is None:
        return None
    joined = len(shape) - len(result) + 1
    if joined > 1:
        return (tuple(range(joined)), *((i,) for i in range(joined, len(shape))))
    new = len(result) - len(shape) + 1
    return (*(() for _ in range(new)), *((i,) for i in range(1, len(shape))))


def _same_axes(shape: tuple[int, ...]) -> AxisMap:
    return tuple((i,) for i in range(len(shape)))


def _normalized_rank(op: Call) -> int:
    given = op.traits.get("normalized_shape") or argument(op, 1, "normalized_shape")
    return len(given) if isinstance(given, tuple | list) else 1


def _sequence_batch_axis(op: Call) -> int:
    return 0 if op.traits.get("batch_first", False) else int(op.row.default)


def scale_of(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    return math.prod(shape[axis] for axis in axes)
