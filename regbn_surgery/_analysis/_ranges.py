"""Whether a tensor has to stay in a range that RegBN would leave: a variance of which a root is taken.

What comes out of an exponential is positive, of a sigmoid between 0 and 1. RegBN subtracts from it what another
modality explains. A root, a logarithm or a power of what is left may be no number.
"""

from __future__ import annotations

from collections.abc import Sequence

from .._ops import Operation, Value, operation
from .._ops._ranges import BOUNDED, NAMED, POWER, ROOTS, TURNS
from .._trace import Call
from .._types import Source
from ._runs import Run

#: Behind these a value has its range still, or one that follows from it.
_KEEPS: tuple[Value, ...] = (
    "reshapes", "permutes", "casts", "drops_out", "splits", "takes_part", "stretches", "repeats", "scales", "shifts",
    "adds", "divides",
)  # fmt: skip


def why_bounded(run: Run, uid: int, joint: Sequence[int]) -> str | None:
    """Why a tensor may not leave its range: what it comes out of, and what is computed of `joint`, which it goes into.

    None where it comes out of no function with a range, or nothing that follows asks for one.
    """
    origin = _origin(run, uid, set())
    asked = None if origin is None else _asked(run, joint)
    if origin is None or asked is None:
        return None
    return f"it comes out of {_at(origin)}, and {_at(asked)} is taken of what it goes into"


def _origin(run: Run, uid: int, seen: set[int]) -> Call | None:
    """The call with a bounded result behind a tensor; None where anything else adds to it."""
    if uid in seen or uid not in run.flow.producers:
        return None
    seen.add(uid)
    op = run.trace.calls[run.flow.producers[uid]]
    if _is_bounded(op):
        return op
    if not (_keeps(op.row) or op.row.family == "concat") or op.name in TURNS or _has_negative(op):
        return None
    operands = [i for i in op.inputs if run.trace.tensors[i].is_float and i != uid]
    found = [_origin(run, i, seen) for i in operands]
    return found[0] if found and all(found) else None


def _asked(run: Run, joint: Sequence[int]) -> Call | None:
    """The first call behind `joint` that asks for an argument within a range; a new range ends the way."""
    reached = set(joint)
    for op in run.trace.calls:
        if reached.isdisjoint(op.inputs) or (op.outputs and set(op.outputs) <= set(joint)):
            continue
        if op.name in ROOTS and not (op.name == POWER and _takes_any(op)):
            return op
        if _is_bounded(op) or len(set(op.inputs)) < len(op.inputs):  # `x * x`
            continue
        if _keeps(op.row) or op.row.family in ("concat", "sum", "product"):
            reached.update(op.outputs)
    return None


def _keeps(row: Operation) -> bool:
    return row.does(*_KEEPS) or row.name in NAMED


def _is_bounded(op: Call) -> bool:
    if op.name != POWER:
        return op.name in BOUNDED
    exponent = op.args[1] if len(op.args) > 1 else op.kwargs.get("exponent")
    return isinstance(exponent, int | float) and exponent % 2 == 0


def _has_negative(op: Call) -> bool:
    return any(isinstance(value, int | float) and value < 0 for value in op.args) and op.row.does("scales", "shifts")


def _takes_any(op: Call) -> bool:
    """Whether a power is defined for all numbers."""
    exponent = op.args[1] if len(op.args) > 1 else op.kwargs.get("exponent")
    return isinstance(exponent, int | float) and float(exponent).is_integer() and exponent >= 0


def _at(op: Call) -> str:
    source: Source | None = op.source
    return f"`{operation(op.name).name}`" + (f" at {source}" if source is not None else "")
