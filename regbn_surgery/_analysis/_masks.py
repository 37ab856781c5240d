"""Which argument of an attention masks whose positions, and whether True in it means "keep" or "leave out".

A name does not tell: `mask` is what to keep in `transformers` and what to leave out in many models written by hand.
What is done with it does: `masked_fill(mask, -inf)` leaves out, `masked_fill(mask == 0, -inf)` keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._ops import Value
from .._trace import Call, Trace, tensor_of
from .._types import Side
from ._anchors import FrameView
from ._met import Meeting

#: Names by which a forward is given a mask over the positions of a text, [B, L], and whether True in it leaves out.
#: They are read by name alone: what a whole model does with such a mask (position numbers, a cache) tells less.
PADDING_MASKS = {"attention_mask": False, "padding_mask": True, "key_padding_mask": True}

_KEEPS_MEANING: tuple[Value, ...] = (
    "reshapes", "permutes", "casts", "takes_part", "stretches", "repeats", "integers",
)  # fmt: skip


@dataclass(frozen=True)
class Mask:
    """`name` is an argument of the owner, or of the torch module that attends; `side` is the side that it masks.

    `leaves_out`: True in it marks what to leave out, not what to keep.
    """

    name: str
    side: int
    leaves_out: bool


def find_mask(meeting: Meeting, view: FrameView, sides: Sequence[Side]) -> Mask | None:
    """The mask over the positions of an attention's sides, if it has one."""
    if meeting.kind != "attention":
        return None
    if meeting.op.row.key_mask is not None:
        name, side = meeting.op.row.key_mask
        return Mask(name, side, leaves_out=True)
    for side in (1, 0):
        spatial = sides[side].spatial_shape
        if len(spatial) != 1:
            continue
        for uid, name in view.arguments.items():
            shape = view.trace.tensors[uid].shape
            named = "mask" in name.lower() and view.carries(uid) is None
            if named and len(shape) >= 2 and shape[-1] == spatial[0] and shape[0] == sides[side].shape[0]:
                return Mask(name, side, _leaves_out(uid, view.trace, "padding" in name))
    return None


def find_padding_mask(view: FrameView, into: Side, side: int) -> Mask | None:
    """The argument of the owner that marks the padding among the positions of what a scatter writes into, if it has
    one. The example need not give it; a call in which it is not there, or of another shape, is one without padding."""
    if len(into.spatial_shape) != 1:
        return None
    given = {name: uid for uid, name in view.arguments.items()}
    shape = (into.shape[into.layout.batch_dim], *into.spatial_shape) if into.layout.batch_dim is not None else ()
    fits = [name for name in PADDING_MASKS if name in given and view.trace.tensors[given[name]].shape == shape]
    others = [name for name in PADDING_MASKS if name in given or name in view.frame.parameters]
    for name in (*fits, *others):
        if name not in given or view.carries(given[name]) is None:
            return Mask(name, side, PADDING_MASKS[name])
    return None


def _leaves_out(mask: int, trace: Trace, otherwise: bool) -> bool:
    """Whether True in a mask marks what to leave out, by following it to where it is used."""
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
    return otherwise


def _use(op: Call, position: int) -> bool | None:
    """Whether this call leaves out (True) or keeps (False) where the mask is true; None where it only passes it on."""
    marks = op.row.mask.get(position)
    if marks == "choice":
        return bool(_is_low(op.args[1])) if len(op.args) == 3 else None
    if marks is None or (position < len(op.args) and tensor_of(op.args[position]) is None):
        return None  # `x[:, 0] = y`: the second tensor is no index
    return marks == "out"


def _is_low(value: Any) -> bool:
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
