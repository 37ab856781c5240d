"""Whether a tensor holds vectors of length one: the product of two such is a cosine similarity, however spelled."""

from __future__ import annotations

from collections.abc import Mapping

from .._ops import Value
from .._trace import Call, Trace
from ._lineage import Lineage

_UNCHANGED: tuple[Value, ...] = ("reshapes", "permutes", "casts", "splits", "takes_part", "stretches", "repeats")


def is_unit(uid: int, trace: Trace, producers: Mapping[int, int], lineages: Mapping[int, Lineage]) -> bool:
    """Whether the vectors of a tensor were divided by their norms and have only been moved or scaled since."""
    for _ in range(len(trace.calls)):
        op = _maker(uid, trace, producers)
        if op is None:
            return False
        if op.row.does("unit"):
            return True
        carrying = [i for i in op.inputs if i in lineages and lineages[i].touched]
        if op.row.does("divides") and len(carrying) == 2:
            return _is_norm(carrying[1], carrying[0], trace, producers)
        if not carrying or not (op.row.does(*_UNCHANGED) or (op.row.does("scales") and len(carrying) == 1)):
            return False
        uid = carrying[0]
    return False


def _is_norm(uid: int, of: int, trace: Trace, producers: Mapping[int, int]) -> bool:
    for _ in range(len(trace.calls)):
        op = _maker(uid, trace, producers)
        if op is None or not op.inputs:
            return False
        if op.row.does("norm"):
            return op.inputs[0] == of
        if not op.row.does(*_UNCHANGED, "floors"):  # `x / x.norm(dim=-1, keepdim=True).clamp(min=eps)`
            return False
        uid = op.inputs[0]
    return False


def _maker(uid: int, trace: Trace, producers: Mapping[int, int]) -> Call | None:
    return trace.calls[producers[uid]] if uid in producers else None
