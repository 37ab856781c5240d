"""Where a tensor of a run comes from: seen through views and casts, and by which calls."""

from __future__ import annotations

import networkx as nx

from .._ops import Value
from .._trace import TensorInfo, Trace
from ._met import Met

#: Behind these an operand is still the same data, or a part of it.
_SEEN_THROUGH: tuple[Value, ...] = ("reshapes", "permutes", "casts", "drops_out", "splits", "takes_part")


class History:
    """The calls of a run so far, as a graph, and which of them made each tensor."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.graph: nx.DiGraph[int] = nx.DiGraph()
        self.producers: dict[int, int] = {}

    def _is_ancestor(self, small: Met, big: Met) -> bool:
        """Whether `small`, seen through views, casts and dropout, is something `big` was computed from."""
        uid = self._root(small.info.uid)
        target = self.producers.get(big.info.uid)
        if target is None:
            return False
        reach = nx.ancestors(self.graph, target) | {target}
        return any(uid in self.trace.calls[index].inputs for index in reach)

    def _root(self, uid: int) -> int:
        while uid in self.producers:
            op = self.trace.calls[self.producers[uid]]
            if not op.row.does(*_SEEN_THROUGH) or not op.inputs or op.inputs[0] == uid:
                break
            uid = op.inputs[0]
        return uid

    def _extent(self, info: TensorInfo) -> tuple[int, ...]:
        """A tensor's shape, with size 1 where it was only stretched: `scale.expand_as(x) * x` is `scale * x`."""
        shape, uid = info.shape, info.uid
        while uid in self.producers and self.trace.calls[self.producers[uid]].row.does("stretches"):
            before = self.trace.calls[self.producers[uid]].inputs[0]
            if before == uid:
                break
            uid, shape = before, self.trace.tensors[before].shape
        return shape
