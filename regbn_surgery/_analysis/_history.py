"""Where a tensor of a run comes from: seen through views and casts, and by which calls."""

from __future__ import annotations

from functools import cached_property

from .._later import nx
from .._ops import Value
from .._trace import Call, TensorInfo, Trace
from ._met import Met

#: Behind these an operand is still the same data, or a part of it.
_SEEN_THROUGH: tuple[Value, ...] = ("reshapes", "permutes", "casts", "drops_out", "splits", "takes_part")


#: Behind these it is the same tensor, laid out otherwise.
_SAME: tuple[Value, ...] = ("reshapes", "permutes", "casts", "stretches")


class History:
    """The calls of a run so far, as a graph, and which of them made each tensor.

    `added_with`, `_depends` and `_leads_to` look at the whole run, the calls to come included.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.graph: nx.DiGraph[int] = nx.DiGraph()
        self.producers: dict[int, int] = {}

    def _is_ancestor(self, small: Met, big: Met) -> bool:
        """Whether `small`, seen through views, casts and dropout, is something `big` was computed from."""
        return self._is_behind(self._root(small.info.uid), big)

    def _comes_again(self, small: Met, big: Met) -> bool:
        """Whether `small` is something `big` was computed from, or that laid out beside every place."""
        return self._is_ancestor(small, big) or self._is_behind(self._root(small.info.uid, copies=True), big)

    def _is_behind(self, uid: int, big: Met) -> bool:
        return any(uid in self.trace.calls[index].inputs for index in self._behind(big.info.uid))

    def _behind(self, uid: int) -> set[int]:
        """The calls so far that a tensor was computed by."""
        target = self.producers.get(uid)
        return set() if target is None else nx.ancestors(self.graph, target) | {target}

    def _root(self, uid: int, copies: bool = False) -> int:
        """The tensor behind views, casts and dropout, and with `copies` behind copies of it side by side."""
        while uid in self.producers:
            op = self.trace.calls[self.producers[uid]]
            same = op.row.does(*_SEEN_THROUGH) or (copies and _copies(op))
            if not same or not op.inputs or op.inputs[0] == uid:
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

    @cached_property
    def _makers(self) -> dict[int, int]:
        made: dict[int, int] = {}
        for op in self.trace.calls:
            for uid in op.outputs:
                if uid not in op.inputs:
                    made.setdefault(uid, op.index)
        return made

    @cached_property
    def _run(self) -> nx.DiGraph[int]:
        graph: nx.DiGraph[int] = nx.DiGraph()
        producers: dict[int, int] = {}
        for op in self.trace.calls:
            graph.add_node(op.index)
            graph.add_edges_from((producers[uid], op.index) for uid in op.inputs if uid in producers)
            producers.update(dict.fromkeys(op.outputs, op.index))
        return graph

    def _same(self, uid: int) -> tuple[object, ...]:
        """The tensor that this is, laid out otherwise: who it was, and which part of it."""
        parts: list[object] = []
        while uid in self._makers:
            op = self.trace.calls[self._makers[uid]]
            if op.row.does("takes_part") and len(op.inputs) == 1:
                if self.trace.tensors[uid].shape != self.trace.tensors[op.inputs[0]].shape:
                    parts.append((op.name, str(op.args[1:]), str(op.kwargs)))
            elif not op.row.does(*_SAME) or not op.inputs:
                break
            uid = op.inputs[0]
        return (uid, *parts)

    def is_same(self, one: int, other: int) -> bool:
        return self._same(one) == self._same(other)

    @cached_property
    def _additions(self) -> dict[tuple[object, ...], list[tuple[Call, int]]]:
        found: dict[tuple[object, ...], list[tuple[Call, int]]] = {}
        for op in self.trace.calls:
            if op.row.does("adds") and op.row.family == "sum" and len(op.inputs) == 2:
                for uid, other in (op.inputs, op.inputs[::-1]):
                    found.setdefault(self._same(uid), []).append((op, other))
        return found

    def added_with(self, uid: int) -> list[tuple[Call, int]]:
        """The calls of the run that add this very tensor to another, with that other."""
        return self._additions.get(self._same(uid), [])

    def _depends(self, uid: int, on: int) -> bool:
        """Whether a tensor is computed from another."""
        source, maker = self._same(on)[0], self._makers.get(uid)
        if maker is None:
            return False
        return any(source in self.trace.calls[index].inputs for index in nx.ancestors(self._run, maker) | {maker})

    def _leads_to(self, op: Call, later: Call) -> bool:
        return nx.has_path(self._run, op.index, later.index)


def _copies(op: Call) -> bool:
    """Whether a call gives the same data as often as it is needed, as a vector beside every place."""
    return op.row.does("stretches", "repeats") or (op.row.family == "concat" and len(set(op.inputs)) == 1)
