"""Whether a tensor holds vectors of length one: the product of two such is a cosine similarity, however spelled."""

from __future__ import annotations

from collections.abc import Mapping

from .._capture import Op, Trace
from . import _axes as ax
from ._lineage import Lineage

_UNCHANGED = ax.VIEWS | ax.PERMUTES | ax.CASTS | ax.SPLITS | {"__getitem__", "expand", "repeat", "repeat_interleave"}
_SCALED = frozenset({"mul", "__mul__", "__rmul__", "div", "__truediv__", "neg"})
_DIVISIONS = frozenset({"div", "div_", "__truediv__", "true_divide", "divide", "__itruediv__"})
_NORMS = frozenset({"norm", "linalg_norm", "vector_norm", "linalg_vector_norm", "frobenius_norm"})
#: What may lie between a norm and the division by it: `x / x.norm(dim=-1, keepdim=True).clamp(min=eps)`.
_ROUND_A_NORM = _UNCHANGED | {"clamp", "clamp_min", "add", "__add__", "__radd__", "expand_as", "maximum", "max"}


def is_unit(uid: int, trace: Trace, producers: Mapping[int, int], lineages: Mapping[int, Lineage]) -> bool:
    """Whether the vectors of a tensor were divided by their norms and have only been moved or scaled since."""
    for _ in range(len(trace.ops)):
        op = _maker(uid, trace, producers)
        if op is None:
            return False
        if op.name == "normalize":
            return True
        carrying = [i for i in op.inputs if i in lineages and lineages[i].touched]
        if op.name in _DIVISIONS and len(carrying) == 2:
            return _is_norm(carrying[1], carrying[0], trace, producers)
        if (op.name not in _UNCHANGED and not (op.name in _SCALED and len(carrying) == 1)) or not carrying:
            return False
        uid = carrying[0]
    return False


def _is_norm(uid: int, of: int, trace: Trace, producers: Mapping[int, int]) -> bool:
    for _ in range(len(trace.ops)):
        op = _maker(uid, trace, producers)
        if op is None or not op.inputs:
            return False
        if op.name in _NORMS:
            return op.inputs[0] == of
        if op.name not in _ROUND_A_NORM:
            return False
        uid = op.inputs[0]
    return False


def _maker(uid: int, trace: Trace, producers: Mapping[int, int]) -> Op | None:
    return trace.ops[producers[uid]] if uid in producers else None
