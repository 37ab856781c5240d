"""Which arguments mask whose positions, and whether True in them means "keep" or "leave out".

A name does not always tell: `mask` is what to keep in `transformers` and what to leave out in many models written by
hand. What is done with it does: `masked_fill(mask, -inf)` leaves out, `masked_fill(mask == 0, -inf)` keeps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .._ops import Value
from .._trace import Call, Trace, tensor_of
from .._types import HostArgument, Side
from ._anchors import FrameView
from ._met import Meeting

#: Names by which a forward is given a mask over the positions of a text, [B, L], and whether True in it leaves out.
#: What a whole model does with such a mask (position numbers, a cache) often tells nothing; where it tells otherwise,
#: the user is asked.
PADDING_MASKS = {"attention_mask": False, "padding_mask": True, "key_padding_mask": True}
#: Before such a name they turn its meaning around, or may.
_TURNED = ("non", "not", "no", "inverted", "inverse", "inv")

_KEEPS_MEANING: tuple[Value, ...] = (
    "reshapes", "permutes", "casts", "takes_part", "stretches", "repeats", "integers",
)  # fmt: skip


@dataclass(frozen=True)
class Mask:
    """`name` is an argument of the owner, or (`layer`) of the torch module that attends; `side` is what it masks.

    `leaves_out`: True in it marks what to leave out, not what to keep.
    """

    name: str
    side: int
    leaves_out: bool
    layer: bool = False


@dataclass(frozen=True)
class Masking:
    """What is known of the padding of a site's sides.

    `found` are the masks that need no word of the user's; `open` says of each side whether RegBN could leave positions
    of it out. `arguments` lists what the host is given, from which a rule may choose, and `meaning` tells of one
    whether what is true in it marks padding, by its name or else by what is done with it; None where neither tells.
    """

    found: tuple[Mask, ...] = ()
    open: tuple[bool, bool] = (True, True)
    arguments: Callable[[], tuple[HostArgument, ...]] = field(default=tuple, compare=False, repr=False)
    meaning: Callable[[HostArgument], bool | None] = field(default=lambda _: None, compare=False, repr=False)


NOT_ASKED = Masking()


def masking_of(view: FrameView, sides: Sequence[Side], meeting: Meeting | None = None) -> Masking:
    """The masks over the positions of a site's sides; `meeting` is the fusion, where the site is at one."""
    found = {} if meeting is None or meeting.kind != "attention" else _of_attention(meeting, view, sides)
    for side in (0, 1):
        known = None if side in found else _by_name(view, sides, side)
        if known is not None:
            found[side] = known
    return replace(asked_of(view), found=tuple(found.values()))


def masking_of_scatter(view: FrameView, sides: Sequence[Side], written: bool) -> Masking:
    """The mask over what a scatter writes into. `written`: other calls have filled that before, stretch by stretch.

    What it writes has no padding: its rows go where the call puts them.
    """
    found = None if written or not _has_positions(sides[0]) else _of_text(view, sides[0])
    return replace(asked_of(view), found=() if found is None else (found,), open=(not written, False))


def asked_of(view: FrameView) -> Masking:
    """What a host is given, with nothing found in it yet."""
    return Masking(arguments=functools.partial(_arguments, view), meaning=functools.partial(_meaning, view.trace))


def _meaning(trace: Trace, argument: HostArgument) -> bool | None:
    return _told(argument.name, argument.uid, trace)


def _told(name: str, uid: int | None, trace: Trace) -> bool | None:
    """Whether True in an argument marks padding, by its name and by its use; None where neither tells, or one tells the
    opposite of the other. Of floats the use tells nothing: they may be additive."""
    named = means_padding(name)
    used = None if uid is None or (named is not None and trace.tensors[uid].is_float) else _leaves_out(uid, trace)
    if named is None or used is None:
        return used if named is None else named
    return named if named == used else None


def _arguments(view: FrameView) -> tuple[HostArgument, ...]:
    """The tensors that the host is given in the example, and the further arguments that it may be given."""
    trace = view.trace
    given = []
    for name, uid in view.frame.inputs:
        info = trace.tensors[uid]
        given.append(
            HostArgument(
                name,
                tuple(info.shape),
                tuple(other for other, number in trace.inputs if number == uid),
                view.carries(uid) is not None,
                uid,
            )
        )
    names = {argument.name.split(".")[0] for argument in given}
    rest = (name for name in view.frame.parameters if name not in names)
    return (*given, *(HostArgument(name, None) for name in rest))


def means_padding(name: str) -> bool | None:
    """Whether True in a mask of this name marks padding; None where the name does not tell."""
    last = name.split(".")[-1].lower()
    known = next((known for known in PADDING_MASKS if last.endswith(known)), None)
    if known is None or last.removesuffix(known).rstrip("_").endswith(_TURNED):
        return None
    return PADDING_MASKS[known]


def _has_positions(side: Side) -> bool:
    return len(side.spatial_shape) == 1 and side.layout.batch_dim is not None


def _rows(side: Side) -> tuple[int, ...]:
    """The shape of a mask over the positions of a side, [B, L]."""
    batch = side.layout.batch_dim
    return () if batch is None else (side.shape[batch], *side.spatial_shape)


def _of_attention(meeting: Meeting, view: FrameView, sides: Sequence[Side]) -> dict[int, Mask]:
    """The mask that an attention is given itself, over its keys or else over its queries."""
    if meeting.op.row.key_mask is not None:
        name, side = meeting.op.row.key_mask
        return {side: Mask(name, side, leaves_out=True, layer=True)}
    for side in (1, 0):
        spatial = sides[side].spatial_shape
        if len(spatial) != 1:
            continue
        for uid, name in view.arguments.items():
            shape = view.trace.tensors[uid].shape
            named = "mask" in name.lower() and view.carries(uid) is None
            if named and len(shape) >= 2 and shape[-1] == spatial[0] and shape[0] == sides[side].shape[0]:
                used = _leaves_out(uid, view.trace)
                return {side: Mask(name, side, "padding" in name if used is None else used)}
    return {}


def _by_name(view: FrameView, sides: Sequence[Side], side: int) -> Mask | None:
    """The one argument that a usual name and its shape, [B, L] of this side alone, say to mark the padding of it."""
    shape = _rows(sides[side])
    if not _has_positions(sides[side]) or shape == _rows(sides[1 - side]) or _had_as_many(view, sides, side):
        return None
    fits = {
        name: uid
        for uid, name in view.arguments.items()
        if means_padding(name) is not None and _is_mask(view, uid, shape) and view.layout(uid).batch_dim == 0
    }
    exact = [name for name in PADDING_MASKS if name in fits]
    if not exact and len(fits) != 1:
        return None
    name = (exact or list(fits))[0]
    leaves_out = _told(name, fits[name], view.trace)
    return None if leaves_out is None else Mask(name, side, leaves_out)


def _had_as_many(view: FrameView, sides: Sequence[Side], side: int) -> bool:
    """Whether an input of the other side's modality has as many positions as this side, and lost some on the way: a
    mask of that length may be of it."""
    batch, length = _rows(sides[side])
    for _, uid in view.trace.inputs:
        lineage, shape = view.carries(uid), view.trace.tensors[uid].shape
        if lineage is None or not lineage.home or not lineage.home <= set(sides[1 - side].home) - set(sides[side].home):
            continue
        if len(shape) in (2, 3) and shape[0] == batch and length in shape[1:]:
            return True
    return False


def _of_text(view: FrameView, into: Side) -> Mask | None:
    """The argument that marks the padding of what a scatter writes into. The example need not give it; a call in which
    it is not there, or of another shape, is one without padding."""
    given = {name: uid for uid, name in view.arguments.items()}
    fits = [name for name in PADDING_MASKS if name in given and _is_mask(view, given[name], _rows(into))]
    others = [name for name in PADDING_MASKS if name in given or name in view.frame.parameters]
    for name in (*fits, *others):
        if name not in given or view.carries(given[name]) is None:
            leaves_out = _told(name, given.get(name), view.trace)
            return None if leaves_out is None else Mask(name, 0, leaves_out)
    return None


def _is_mask(view: FrameView, uid: int, shape: tuple[int, ...]) -> bool:
    return view.trace.tensors[uid].shape == shape and view.carries(uid) is None


def _leaves_out(mask: int, trace: Trace) -> bool | None:
    """Whether True in a mask marks what to leave out, by following it to where it is used; None where none tells."""
    negated = {mask: False}
    for op in trace.calls:
        positions = [i for i, uid in enumerate(op.inputs) if uid in negated]
        if not positions:
            continue
        odd = negated[op.inputs[positions[0]]]
        used = _use(op, positions[0])
        if used is not None:
            return used != odd
        flips = _flips(op)
        if flips is not None:
            negated.update((uid, odd != flips) for uid in op.outputs)
    return None


def _use(op: Call, position: int) -> bool | None:
    """Whether this call leaves out (True) or keeps (False) where the mask is true; None where it only passes it on."""
    marks = op.row.mask.get(position)
    if op.row.key_mask is not None and tensor_of(op.kwargs.get(op.row.key_mask[0])) is not None:
        known = tensor_of(op.kwargs[op.row.key_mask[0]])
        return True if known is not None and known.uid == op.inputs[position] else None
    if marks == "choice":
        return _chooses_out(op.args[1], op.args[2]) if len(op.args) == 3 else None
    if marks is None or (position < len(op.args) and tensor_of(op.args[position]) is None):
        return None  # `x[:, 0] = y`: the second tensor is no index
    if op.row.family == "scatter" and len(op.args) > 2 and tensor_of(op.args[2]) is not None:
        return None  # `x[words] = y`: puts content there
    return marks == "out"


def _chooses_out(where_true: Any, where_false: Any) -> bool | None:
    """Of `torch.where`: what is a number beside a tensor stands for what is left out."""
    if tensor_of(where_true) is not None:
        return None if tensor_of(where_false) is not None else False
    return _is_low(where_true) or tensor_of(where_false) is not None


def _is_low(value: object) -> bool:
    return isinstance(value, int | float) and value < -1


def _flips(op: Call) -> bool | None:
    """Whether the result is true where the mask was false; None where it is something else."""
    row = op.row
    if row.does(*_KEEPS_MEANING):
        return False
    other = next((value for value in op.args if isinstance(value, bool | int | float)), None)
    if row.does("negates"):
        return True
    if other is None:
        return None
    if row.does("equal"):
        return not other
    if row.does("unequal"):
        return bool(other)
    if row.does("less"):
        return True
    return False if row.does("greater") else None
