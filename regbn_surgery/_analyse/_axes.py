"""How an operation moves the axes of its main operand.

Lineage (which half of a concatenation is this?), attention scores (whose positions are these?) and layouts (where is
the channel axis now?) all ask the same question, so it is answered once, here: for every axis of the result, which
axes of the operand it comes from, and which axes of the operand the operation mixes along.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from .._capture import Op, TensorRef

VIEWS = frozenset({
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel", "contiguous",
    "Flatten", "Unflatten", "squeeze_", "unsqueeze_", "expand_dims",
})  # fmt: skip
#: Repeat a tensor without copying it, as broadcasting does.
STRETCHES = frozenset({"expand", "expand_as", "broadcast_to"})
PERMUTES = frozenset({
    "permute", "transpose", "t", "T", "mT", "H", "mH", "swapaxes", "swapdims", "movedim", "moveaxis", "adjoint",
    "transpose_", "t_",
})  # fmt: skip
REDUCTIONS = frozenset({
    "mean", "sum", "amax", "amin", "max", "min", "logsumexp", "norm", "std", "var", "prod", "nanmean", "nansum",
    "median", "argmax", "argmin", "any", "all", "vector_norm", "linalg_vector_norm", "linalg_norm",
})  # fmt: skip
CASTS = frozenset({
    "to", "type", "type_as", "float", "half", "bfloat16", "double", "clone", "detach", "contiguous", "cpu", "cuda",
    "requires_grad_", "data", "Identity", "identity", "alias", "detach_",
})  # fmt: skip
DROPOUTS = frozenset({
    "dropout", "Dropout", "dropout1d", "dropout2d", "dropout3d", "Dropout1d", "Dropout2d", "Dropout3d",
    "alpha_dropout", "feature_alpha_dropout", "feature_dropout", "AlphaDropout", "FeatureAlphaDropout",
})  # fmt: skip
SPLITS = frozenset({
    "split", "chunk", "unbind", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "hsplit", "vsplit",
})  # fmt: skip
PER_LAST_AXIS = frozenset({
    "Linear", "linear", "NonDynamicallyQuantizableLinear", "LazyLinear", "Bilinear", "bilinear",
})  # fmt: skip
RECURRENT = frozenset({"RNN", "LSTM", "GRU"})
ATTENTIONS = frozenset({
    "scaled_dot_product_attention", "MultiheadAttention", "multi_head_attention_forward", "TransformerEncoderLayer",
    "TransformerEncoder", "TransformerDecoderLayer", "TransformerDecoder", "Transformer",
})  # fmt: skip

#: Calls that compute or reorder along axes they name, and where among their arguments they name them.
_ALONG = {
    "softmax": 1, "log_softmax": 1, "logsoftmax": 1, "softmin": 1, "gumbel_softmax": 4, "glu": 1, "normalize": 2,
    "cumsum": 1, "cumprod": 1, "cummax": 1, "cummin": 1, "logcumsumexp": 1, "sort": 1, "msort": 1, "topk": 2,
    "flip": 1, "roll": 2, "gather": 1, "take_along_dim": 2, "renorm": 2,
}  # fmt: skip
#: What they do where no axis is named, if not the last one.
_UNNAMED = {"normalize": 1, "msort": 0, "roll": None, "take_along_dim": None}
_FIXED_AXES = {
    "fliplr": 1, "flipud": 0, "channel_shuffle": 1, "channelshuffle": 1, "local_response_norm": 1,
    "localresponsenorm": 1, "crossmaplrn2d": 1, "softmax2d": -3,
}  # fmt: skip
#: Shapes say nothing about these: a square matrix and its inverse look alike.
_OPAQUE = frozenset({"rot90", "inverse", "matrix_exp", "matrix_power", "cholesky", "pinverse", "take", "put"})

AxisMap = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Movement:
    """`source[i]` are the operand's axes that axis i of the result covers; `mixed` those it computes across."""

    source: AxisMap
    mixed: frozenset[int]


def argument(op: Op, position: int, name: str, default: Any = None) -> Any:
    """An argument of the recorded call, counted as the call was written (the tensor itself is 0)."""
    if name in op.kwargs:
        return op.kwargs[name]
    return op.args[position] if position < len(op.args) else default


def movement(op: Op, shape: tuple[int, ...], result: tuple[int, ...]) -> Movement | None:
    """How `op` takes an operand of `shape` to a result of shape `result`; None where that is not known."""
    name = op.name
    if name in VIEWS:
        return Movement(view_map(shape, result), frozenset())
    if name in PERMUTES:
        order = _permutation(op, len(shape))
        return None if order is None else Movement(tuple((axis,) for axis in order), frozenset())
    if name in ("__getitem__", "select", "narrow", "index_select"):
        source = _index_map(op, shape, result)
        return None if source is None else Movement(source, _reordered(op, shape, result))
    if name in SPLITS:
        dim = split_dim(op, len(shape))
        axes = [(i,) for i in range(len(shape))]
        if name == "unbind":
            axes.pop(dim)
        return Movement(tuple(axes), frozenset())
    if name in REDUCTIONS:
        return _reduction(op, shape, result)
    if name in ("expand", "expand_as", "broadcast_to", "repeat"):
        return Movement(broadcast_map(shape, result), frozenset())
    if name == "stack":
        dim = int(argument(op, 1, "dim", 0)) % len(result)
        kept = _same_axes(shape)
        return Movement((*kept[:dim], (), *kept[dim:]), frozenset())
    return _computation(op, shape, result)


def _computation(op: Op, shape: tuple[int, ...], result: tuple[int, ...]) -> Movement | None:
    name, last = op.name, len(shape) - 1
    lower = name.lower()
    if name in PER_LAST_AXIS:
        return Movement((*((i,) for i in range(last)), ()), frozenset({last})) if len(result) == len(shape) else None
    if lower.startswith(("conv", "lazyconv")) or "unfold" in lower:
        spatial = range(2, len(shape))
        source = ((0,), (), *((i,) for i in spatial)) if len(result) == len(shape) else None
        return None if source is None else Movement(source, frozenset({1, *spatial}))
    over_space = spatial_axes(op, len(shape))
    if over_space is not None:
        return Movement(_same_axes(shape), over_space) if len(result) == len(shape) else None
    if "layernorm" in lower or lower in ("layer_norm", "rms_norm", "rmsnorm"):
        width = _normalized_rank(op)
        return Movement(_same_axes(shape), frozenset(range(len(shape) - width, len(shape))))
    if "batchnorm" in lower or lower == "batch_norm":
        return Movement(_same_axes(shape), frozenset())
    if "groupnorm" in lower or "instancenorm" in lower or lower in ("group_norm", "instance_norm"):
        return Movement(_same_axes(shape), frozenset(range(1, len(shape))))
    if name in RECURRENT or name in ATTENTIONS:
        batch = _sequence_batch_axis(op)
        mixed = frozenset(range(len(shape))) - {batch}
        return Movement((*((i,) for i in range(last)), ()), mixed) if len(result) == len(shape) else None
    along = _along(op, len(shape))
    if along is not None:
        return Movement(_same_axes(shape), along) if len(result) == len(shape) else None
    if lower.startswith("linalg_") or lower in _OPAQUE:
        return None
    if lower == "embedding":
        return Movement((*_same_axes(shape), ()), frozenset())
    if len(op.inputs) >= 1 and is_broadcast(shape, result) and name not in ("cat", "concat", "concatenate"):
        return Movement(broadcast_map(shape, result), frozenset())
    return None


def spatial_axes(op: Op, rank: int) -> frozenset[int] | None:
    """The axes that pooling, resizing and padding work on; None for other calls."""
    lower = op.name.lower()
    if lower == "pad":
        widths = argument(op, 1, "pad", ())
        return frozenset(range(max(rank - len(widths) // 2, 0), rank))
    sized = re.search(r"([123])d", lower)
    if "pool" in lower or lower in ("interpolate", "upsample"):
        last = int(sized.group(1)) if sized else 0
    elif sized and re.search(r"pad[123]d$", lower):
        return frozenset(range(max(rank - int(sized.group(1)), 0), rank))
    else:
        return None
    return frozenset(range(2, rank)) | frozenset(range(max(rank - last, 0), rank))


def _along(op: Op, rank: int) -> frozenset[int] | None:
    """The axes a softmax, a sort, a flip, a Fourier transform ... works along; None for calls that name none."""
    lower = op.name.lower()
    default: Any = -1
    if lower in _FIXED_AXES:
        return frozenset({_FIXED_AXES[lower] % rank})
    if lower.startswith("fft_"):
        position = 1 if "shift" in lower else 2
        default = (-2, -1) if lower.endswith("2") else None if "shift" in lower or lower.endswith("n") else -1
    elif lower in _ALONG:
        position, default = _ALONG[lower], _UNNAMED.get(lower, -1)
    else:
        return None
    if op.is_module:
        dims = op.traits.get("dim", default)
    elif lower == "flip" and len(op.args) > 2:
        dims = op.args[1:]
    else:
        dims = next((op.kwargs[name] for name in ("dim", "dims", "axis") if name in op.kwargs), None)
        dims = argument(op, position, "dim", default) if dims is None else dims
    if dims is None and "softm" in lower:  # torch chooses the axis by the rank (`_get_softmax_dim`)
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


def split_dim(op: Op, rank: int) -> int:
    if op.name == "unbind":
        dim = argument(op, 1, "dim", 0)
    elif op.name in ("hsplit", "vsplit"):
        dim = 1 if op.name == "hsplit" and rank > 1 else 0
    else:
        dim = argument(op, 2, "dim", 0)
    return int(dim) % rank


def concat_dim(op: Op, rank: int) -> int:
    if op.name in ("hstack", "column_stack"):
        return 1 if rank > 1 else 0
    if op.name == "vstack":
        return 0
    if op.name == "dstack":
        return 2
    return int(argument(op, 1, "dim", argument(op, 1, "axis", 0))) % rank


def reduced_dims(op: Op, rank: int) -> tuple[int, ...]:
    position = 2 if op.name in ("norm", "vector_norm", "linalg_vector_norm", "linalg_norm") else 1
    dims = argument(op, position, "dim", argument(op, position, "axis"))
    if dims is None:
        return tuple(range(rank))
    if op.name in ("mean", "sum", "amax", "amin") and len(op.args) > 2 and all(isinstance(x, int) for x in op.args[1:]):
        dims = op.args[1:] if not isinstance(op.args[2], bool) else dims
    if isinstance(dims, TensorRef | bool):
        return ()
    many = dims if isinstance(dims, tuple | list) else (dims,)
    return tuple(sorted(int(dim) % rank for dim in many)) if rank else ()


def _reduction(op: Op, shape: tuple[int, ...], result: tuple[int, ...]) -> Movement | None:
    if len(op.inputs) > 1:  # max(a, b) is elementwise
        return Movement(broadcast_map(shape, result), frozenset()) if is_broadcast(shape, result) else None
    dims = reduced_dims(op, len(shape))
    if len(result) == len(shape):
        return Movement(tuple(() if i in dims else (i,) for i in range(len(shape))), frozenset())
    kept = tuple((i,) for i in range(len(shape)) if i not in dims)
    return Movement(kept, frozenset()) if len(kept) == len(result) else None


def _permutation(op: Op, rank: int) -> tuple[int, ...] | None:
    order = list(range(rank))
    if op.name in ("T", "H") or (op.name in ("t", "t_") and rank == 2):
        return tuple(reversed(order))
    if op.name in ("t", "t_"):
        return tuple(order)
    if op.name in ("mT", "mH", "adjoint"):
        order[-1], order[-2] = order[-2], order[-1]
        return tuple(order)
    if op.name == "permute":
        dims = op.kwargs.get("dims", op.args[1:])
        if len(dims) == 1 and isinstance(dims[0], tuple | list):
            dims = dims[0]
        return tuple(int(dim) % rank for dim in dims)
    if op.name in ("movedim", "moveaxis"):
        return _moved(op, rank)
    first = argument(op, 1, "dim0", argument(op, 1, "axis0"))
    second = argument(op, 2, "dim1", argument(op, 2, "axis1"))
    if first is None or second is None:
        return None
    a, b = int(first) % rank, int(second) % rank
    order[a], order[b] = order[b], order[a]
    return tuple(order)


def _moved(op: Op, rank: int) -> tuple[int, ...]:
    source, target = argument(op, 1, "source"), argument(op, 2, "destination")
    sources = [int(x) % rank for x in (source if isinstance(source, tuple | list) else (source,))]
    targets = [int(x) % rank for x in (target if isinstance(target, tuple | list) else (target,))]
    placed = dict(zip(targets, sources, strict=True))
    rest = iter(i for i in range(rank) if i not in sources)
    return tuple(placed[i] if i in placed else next(rest) for i in range(rank))


def index_entries(op: Op, rank: int) -> list[Any] | None:
    """The entries of `x[...]` with the ellipsis spelled out; None where tensors index it."""
    if op.name == "select":
        entries: list[Any] = [slice(None)] * rank
        entries[int(argument(op, 1, "dim")) % rank] = int(argument(op, 2, "index"))
        return entries
    if op.name == "narrow":
        entries = [slice(None)] * rank
        start, length = argument(op, 2, "start"), argument(op, 3, "length")
        if not isinstance(start, int):
            return None
        entries[int(argument(op, 1, "dim")) % rank] = slice(start, start + int(length))
        return entries
    if op.name == "index_select":
        return None
    filled = _spelled_out(op, rank)
    if any(not (entry is None or isinstance(entry, int | slice)) or isinstance(entry, bool) for entry in filled):
        return None
    return filled


def _spelled_out(op: Op, rank: int) -> list[Any]:
    index = op.args[1]
    entries = list(index) if isinstance(index, tuple) else [index]
    taken = sum(entry is not None and entry is not Ellipsis for entry in entries)
    filled: list[Any] = []
    for entry in entries:
        filled.extend([slice(None)] * (rank - taken) if entry is Ellipsis else [entry])
    filled.extend([slice(None)] * (rank - sum(entry is not None for entry in filled)))
    return filled


def _reordered(op: Op, shape: tuple[int, ...], result: tuple[int, ...]) -> frozenset[int]:
    """Axes of which an index takes anything but one stretch: a stretch of the result may be from anywhere."""
    rank = len(shape)
    if op.name == "index_select" or (op.name == "narrow" and not isinstance(argument(op, 2, "start"), int)):
        return frozenset({int(argument(op, 1, "dim")) % rank})
    if op.name != "__getitem__":
        return frozenset()
    if isinstance(op.args[1], TensorRef):  # a mask takes as many axes as it has
        return frozenset(range(max(rank - len(result) + 1, 1)))
    entries = [entry for entry in _spelled_out(op, rank) if entry is not None]
    return frozenset(
        axis
        for axis, entry in enumerate(entries)
        if (entry.step not in (None, 1) if isinstance(entry, slice) else not isinstance(entry, int))
    )


def _index_map(op: Op, shape: tuple[int, ...], result: tuple[int, ...]) -> AxisMap | None:
    if op.name == "index_select":
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


def _tensor_index_map(op: Op, shape: tuple[int, ...], result: tuple[int, ...]) -> AxisMap | None:
    """`x[mask]` joins the leading axes that the mask has; `x[ids]` puts the axes of the ids in place of the first."""
    if len(shape) == len(result):
        return _same_axes(shape)
    if not isinstance(op.args[1], TensorRef):
        return None
    joined = len(shape) - len(result) + 1
    if joined > 1:
        return (tuple(range(joined)), *((i,) for i in range(joined, len(shape))))
    new = len(result) - len(shape) + 1
    return (*(() for _ in range(new)), *((i,) for i in range(1, len(shape))))


def _same_axes(shape: tuple[int, ...]) -> AxisMap:
    return tuple((i,) for i in range(len(shape)))


def _normalized_rank(op: Op) -> int:
    given = op.traits.get("normalized_shape") or argument(op, 1, "normalized_shape")
    return len(given) if isinstance(given, tuple | list) else 1


def _sequence_batch_axis(op: Op) -> int:
    if op.name in ("scaled_dot_product_attention",):
        return 0
    return 0 if op.traits.get("batch_first", False) else 1


def scale_of(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    return math.prod(shape[axis] for axis in axes)
