"""What the axes of a tensor mean: batch, channels, space or sequence, with the evidence that decided it.

The batch axis is what differs between a run at one batch size and a run at another. The channel axis comes from the
layers a tensor went through, not from its rank: a `[8, 16, 32]` may be batch-first tokens or a channels-first signal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .._ops import Value
from .._trace import Call, Trace
from .._types import Layout
from . import _axes as ax
from ._contract import labels

#: Behind these a parameter is still the same weights, whole or in part.
_SAME_VALUES: tuple[Value, ...] = ("reshapes", "permutes", "casts", "splits", "takes_part", "stretches")


@dataclass(frozen=True)
class Channel:
    """A channel axis, the layer that says so, and whether that layer puts channels first or last.

    `split`: the axis that the layer made has been laid out as several since, so that who reads it knows better.
    """

    dim: int
    evidence: str
    style: str  # "first" (convolutions, batch norm) or "last" (Linear, LayerNorm, Embedding, RNN, attention)
    split: bool = False


@dataclass(frozen=True)
class BatchAxes:
    """Axes that follow the batch size: `axis` where there is one and it counts samples, `varying` all of them."""

    axis: Mapping[int, int]
    folded: Mapping[int, tuple[int, int]]  # uid -> (axis, how many times the batch size)
    varying: Mapping[int, tuple[int, ...]]
    known: bool  # False where no second run could be compared


def compare_batches(small: Trace, large: Trace | None, sizes: tuple[int, int]) -> BatchAxes:
    """Find the batch axis of every tensor of `small` from the same run at another batch size."""
    axis: dict[int, int] = {}
    folded: dict[int, tuple[int, int]] = {}
    varying: dict[int, tuple[int, ...]] = {}
    if large is None:
        return BatchAxes(axis, folded, varying, False)
    for uid, other in _aligned(small, large):
        a, b = small.tensors[uid].shape, large.tensors[other].shape
        if len(a) != len(b):
            continue
        differing = tuple(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        varying[uid] = differing
        # Two examples may differ in length as well: the batch axis is the one that follows the batch size.
        following = [dim for dim in differing if a[dim] * sizes[1] == b[dim] * sizes[0]]
        if len(following) != 1:
            continue
        dim = following[0]
        if len(differing) == 1 and a[dim] % sizes[0] == 0 and a[dim] != sizes[0]:
            folded[uid] = (dim, a[dim] // sizes[0])
        elif a[dim] == sizes[0] or (len(differing) == 1 and sizes[0] % a[dim] == 0):  # samples, or groups of them
            axis[uid] = dim
    return BatchAxes(axis, folded, varying, True)


def compare_lengths(trace: Trace, longer: Trace | None) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Axes that differ, and the other shape, of tensors in the same run on an example of other lengths, by uid."""
    found = {}
    for uid, other in _aligned(trace, longer) if longer is not None else ():
        a, b = trace.tensors[uid].shape, longer.tensors[other].shape if longer is not None else ()
        if len(a) == len(b) and a != b:
            found[uid] = tuple(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), b
    return found


def _aligned(small: Trace, large: Trace) -> list[tuple[int, int]]:
    """Tensors of the two runs that are the same line of code's; a loop over samples may have more rounds in one."""
    pairs = list(zip((uid for _, uid in small.inputs), (uid for _, uid in large.inputs), strict=False))
    places = _places(large)
    twins = {(places[op.frame], op.key): op for op in large.calls}
    places = _places(small)
    for op in small.calls:
        twin = twins.get((places[op.frame], op.key))
        if twin is not None:
            pairs.extend(zip(op.outputs, twin.outputs, strict=False))
    return pairs


def same_calls(a: Trace, b: Trace) -> bool:
    """Whether two runs made the same calls in the same order."""
    places = _places(a), _places(b)
    if len(a.calls) != len(b.calls):
        return False
    return all(
        x.key == y.key and places[0][x.frame] == places[1][y.frame] for x, y in zip(a.calls, b.calls, strict=True)
    )


def makes_more(run: Trace, known: Trace) -> bool:
    """Whether a run makes calls at lines of code to which the other run did not come."""
    places = _places(known), _places(run)
    lines = {(places[0][op.frame], op.key[:3]) for op in known.calls}
    return any((places[1][op.frame], op.key[:3]) not in lines for op in run.calls)


def _places(trace: Trace) -> list[tuple[Any, ...]]:
    """For each frame the keys of the calls that lead to it: its identity across runs."""
    places: list[tuple[Any, ...]] = []
    for frame in trace.frames:
        above = places[frame.parent] if frame.parent is not None else ()
        places.append((*above, frame.path, frame.key))
    return places


def channel_axes(trace: Trace) -> dict[int, Channel]:
    """The channel axis of every tensor whose making tells it; tensors no layer has touched look at who reads them."""
    channels: dict[int, Channel] = {}
    owned = _owned(trace)
    for op in trace.calls:
        for uid in op.outputs:
            if op.inplace and uid in channels:
                continue
            found = _channel_after(op, uid, trace, channels, owned)
            if found is not None:
                channels[uid] = found
    for op in reversed(trace.calls):
        for position, uid in enumerate(op.inputs):
            known = channels.get(uid)
            if (known is None or known.split) and trace.tensors[uid].parameter is None:
                wanted = _channel_wanted(op, position, uid, trace, channels)
                if wanted is not None and (known is None or not (wanted.split or wanted.dim == known.dim)):
                    channels[uid] = wanted
    return channels


def _owned(trace: Trace) -> dict[int, str]:
    """The parameter or buffer that each tensor is or is a view of: `table.weight.T` is still the table."""
    owned = {uid: info.parameter for uid, info in trace.tensors.items() if info.parameter is not None}
    for op in trace.calls:
        if op.row.does(*_SAME_VALUES) and op.inputs and all(uid in owned for uid in op.inputs):
            owned.update((uid, owned[op.inputs[0]]) for uid in op.outputs)
    return owned


def _layer(op: Call, rank: int) -> tuple[int, str, str] | None:
    """(axis, style, words) for a layer whose own definition fixes where its channels are."""
    if op.row.channels == "first":
        return (1, "first", "axis 1") if rank > 1 else None
    return (rank - 1, "last", "last axis") if op.row.channels == "last" else None


def _named(op: Call) -> str:
    return f"{op.name} `{op.module}`" if op.module else f"`{op.name}`"


def _channel_after(
    op: Call, uid: int, trace: Trace, channels: Mapping[int, Channel], owned: Mapping[int, str]
) -> Channel | None:
    result = trace.tensors[uid].shape
    layer = _layer(op, len(result))
    if layer is not None and trace.tensors[uid].is_float:
        dim, style, words = layer
        return Channel(dim, f"channel axis {dim}: {words} of {_named(op)}", style)
    if op.row.family == "matmul":
        return _channel_of_product(op, result, trace, channels, owned)
    known = [i for i in op.inputs if i in channels and i != uid]
    if not known:
        return None
    main = max(known, key=lambda i: _numel(trace.tensors[i].shape))
    if len(known) > 1 and op.row.family != "concat":
        full = [i for i in known if trace.tensors[i].shape == result]
        main = full[0] if full else main
    shape, channel = trace.tensors[main].shape, channels[main]
    move = ax.movement(op, shape, result)
    if move is None:
        return channel if len(shape) == len(result) and channel.dim < len(result) else None
    places = [i for i, source in enumerate(move.source) if channel.dim in source]
    if not places:
        return None
    # A channel axis split into heads: the innermost part is what a projection would see as features.
    dim, split = places[-1], channel.split or len(places) > 1
    if dim == channel.dim:
        return replace(channel, split=split)
    return Channel(dim, f"channel axis {dim}: followed from {channel.evidence}", channel.style, split)


def _channel_of_product(
    op: Call, result: tuple[int, ...], trace: Trace, channels: Mapping[int, Channel], owned: Mapping[int, str]
) -> Channel | None:
    spelled = labels(op, [trace.tensors[i].shape for i in op.inputs], result)
    if spelled is None:
        return None
    inputs, output = spelled
    named = [(i, channels[uid].dim) for i, uid in enumerate(op.inputs[: len(inputs)]) if uid in channels]
    features = next((inputs[i][dim] for i, dim in named if dim < len(inputs[i])), None)
    for position, uid in reversed(list(enumerate(op.inputs[: len(inputs)]))):
        made = _made_by_weights(position, inputs, output, features) if uid in owned else None
        if made is not None:
            dim = output.index(made)
            return Channel(dim, f"channel axis {dim}: product with parameter `{owned[uid]}`", "last")
        channel = channels.get(uid)
        if channel is not None and channel.dim < len(inputs[position]) and inputs[position][channel.dim] in output:
            dim = output.index(inputs[position][channel.dim])
            return Channel(dim, f"channel axis {dim}: followed from {channel.evidence}", channel.style, channel.split)
    return None


def _made_by_weights(
    position: int, inputs: list[tuple[str, ...]], output: tuple[str, ...], features: str | None
) -> str | None:
    """The label of the features that the weights at `position` make; None where they make none.

    `x @ W` and `einsum("bld,cd->blc", x, W)` make features; the same product with an adjacency matrix, `A @ x`, makes
    positions. So the weights have to sum over the features of the other operand, or else put their own label last.
    """
    own, last = inputs[position], output[-1:]
    others = {name for i, names in enumerate(inputs) if i != position for name in names}
    if features is not None and features in output:
        return None
    new = [name for name in own if name in output and name not in others]
    if len(new) == 1 and (features in own or tuple(new) == last or new[0] == own[-1]):
        return new[0]
    return own[-1] if own and own[-1] in output else None


def _channel_wanted(op: Call, position: int, uid: int, trace: Trace, channels: Mapping[int, Channel]) -> Channel | None:
    shape = trace.tensors[uid].shape
    if not trace.tensors[uid].is_float or not op.outputs:
        return None
    if position == 0 or (op.row.content is not None and op.is_module):
        layer = _layer(op, len(shape))
        if layer is not None and not op.row.embeds:
            dim, style, words = layer
            return Channel(dim, f"channel axis {dim}: read as {words} by {_named(op)}", style)
    result = trace.tensors[op.outputs[0]]
    channel = channels.get(result.uid)
    if channel is None:
        return _channel_of_pooled(op, position, len(shape))
    move = ax.movement(op, shape, result.shape)
    if move is None:
        same = op.row.family == "concat" and len(shape) == len(result.shape)
        return channel if same else None
    source = move.source[channel.dim] if channel.dim < len(move.source) else ()
    if len(source) != 1 or channel.dim in {i for i in move.mixed if source[0] == i and shape != result.shape}:
        return None
    dim = source[0]
    if dim == channel.dim:
        return channel
    return Channel(dim, f"channel axis {dim}: before {channel.evidence}", channel.style, channel.split)


def _channel_of_pooled(op: Call, position: int, rank: int) -> Channel | None:
    """Pooling and resizing over two axes or more say where the channels of a map are that no layer has touched."""
    spatial = ax.spatial_axes(op, rank)
    if position != 0 or spatial is None or rank < 4 or spatial != frozenset(range(2, rank)):
        return None
    return Channel(1, f"channel axis 1: read as axis 1 by {_named(op)}", "first")


def layout_of(
    uid: int,
    trace: Trace,
    batches: BatchAxes,
    channels: Mapping[int, Channel],
    lengths: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]] = {},
) -> Layout:
    """The layout of one tensor. What cannot be known is None, with the reason among the evidence."""
    info = trace.tensors[uid]
    rank = len(info.shape)
    evidence = []
    batch = batches.axis.get(uid)
    if batch is not None:
        evidence.append(f"batch axis {batch}: it follows the batch size of the example inputs")
    elif uid in batches.folded:
        folded, times = batches.folded[uid]
        evidence.append(f"axis {folded} is {times} x the batch size: samples and something else are folded together")
    elif not batches.known:
        evidence.append("batch axis unknown: no second batch size could be run")
    else:
        evidence.append("no axis follows the batch size")
    channel = channels.get(uid)
    dim = channel.dim if channel is not None and channel.dim < rank else None
    if dim is not None and dim == batch:
        dim = None
    if dim is None and batch is not None and rank == 2:
        dim = 1 - batch
        evidence.append(f"channel axis {dim}: the only axis besides the batch axis")
    elif dim is not None and channel is not None:
        evidence.append(channel.evidence)
    else:
        evidence.append("channel axis unknown: no layer with a known layout made or reads this tensor")
    spatial = tuple(i for i in range(rank) if i not in (batch, dim)) if batch is not None and dim is not None else ()
    # One axis of positions before the channels is a sequence, also where a map's places were laid out as tokens.
    sequence = len(spatial) == 1 and channel is not None and (channel.style == "last" or dim == rank - 1)
    varying, other = lengths.get(uid, ((), ()))
    for axis in varying:
        evidence.append(f"axis {axis} varies in length: {info.shape[axis]} in one example, {other[axis]} in the other")
        sequence = sequence or axis in spatial
    return Layout(batch, dim, spatial, sequence, tuple(evidence), batches.folded.get(uid))


def _numel(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
