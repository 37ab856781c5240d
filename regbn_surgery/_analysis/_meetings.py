"""Where an operation takes several operands that carry modalities: do streams meet, and whose is the result?

What meets is decided by homes (see `_lineage`), never by which modalities merely touched a tensor: in a model with
one cross-attention everything after it is touched by both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .._ops import Family
from .._trace import Call, TensorInfo
from .._types import Kind
from . import _axes as ax
from ._contract import contract
from ._cosine import is_unit
from ._lineage import (
    NOBODY,
    Home,
    Lineage,
    Segments,
    carry_axes,
    comparable,
    incomparable,
    union,
    whole_again,
)
from ._met import Meeting, Met
from ._nested import Nested
from ._parts import alike, inlined

Extents = Mapping[int, tuple[int, ...]]  # shapes of operands, by their position


class Meetings(Nested):
    """The meetings of a run, noted as it is followed. `_flow` tells it of every operation, and of every lineage."""

    def interpret(self, op: Call, operands: tuple[Met, ...]) -> Lineage:
        """The lineage of the results of an operation on several operands."""
        kind = op.row.family
        if kind == "concat":
            return self._concat(op, operands)
        if kind != "attention" and all(m.lineage.pooled or not m.lineage.given for m in operands):
            operands = self._as_given(operands, residuals=kind == "sum") or operands
        if kind in ("sum", "product") and len(op.outputs) == 1:
            return self._elementwise(op, kind, operands)
        if kind == "matmul" or op.row.product is not None:
            return self._matmul(op, operands)
        if kind == "attention":
            return self._attention(op, operands)
        return self._join(op, kind, operands)

    def _as_given(self, operands: tuple[Met, ...], residuals: bool = False) -> tuple[Met, ...] | None:
        """The operands as streams of the values that an attention gave them, where only then they meet.

        A residual connection (of the kinds of calls that may be one) gives back the stream that asked.
        """
        taken = tuple(replace(m, lineage=m.lineage.as_given()) if m.lineage.given else m for m in operands)
        if incomparable(m.home for m in operands) or not incomparable(m.home for m in taken):
            return None
        own, given = ([m for m in operands if bool(m.lineage.given) is far] for far in (False, True))
        if residuals and any(self._is_ancestor(*pair) for x in own for y in given for pair in ((x, y), (y, x))):
            return None
        return taken

    def _on_samples(self, op: Call, operands: tuple[Met, ...]) -> bool:
        """Whether the call stacks whole samples behind one another."""
        if op.row.family != "concat" or op.row.axes == "stack":
            return False
        dim = ax.concat_dim(op, len(self.trace.tensors[op.outputs[0]].shape))
        return any(self.batch_axes.get(m.info.uid) == dim for m in operands)

    def _concat(self, op: Call, operands: tuple[Met, ...]) -> Lineage:
        result = self.trace.tensors[op.outputs[0]]
        dim = ax.concat_dim(op, len(result.shape))
        on_batch = self._on_samples(op, operands)
        homes = [m.home for m in operands]
        meeting: int | None = None
        home = union(homes)
        if on_batch and incomparable(homes):
            # Only once what was stacked is laid side by side (`view(2, B, C)`) can something mix the parts.
            self.meetings.append(Meeting(op, "concat", operands, home, real=False))
            meeting = len(self.meetings) - 1
        elif not on_batch and len(operands) == len(op.inputs):
            meeting = whole_again([m.lineage.piece for m in operands])
        if not on_batch and meeting is None:
            met = operands if incomparable(homes) else self._as_given(operands)
            if met is None:
                home, meeting = self._nested(op, "concat", operands)
            else:
                home = union(m.home for m in (*operands, *met))
                meeting = self._meet(op, "concat", met, home, real=False)
        lineage = self._fused(operands, home, None if on_batch else meeting)
        if len(set(homes)) == 1 and (on_batch or meeting is None):
            kept = self._kept_parts(op, dim, operands)
            if kept is not None or not any(m.lineage.segments for m in operands):
                return replace(lineage, segments=kept)
        by_position = {m.position: m.lineage for m in operands}
        nobody = Lineage(NOBODY, NOBODY)
        parts = [
            (1 if op.row.axes == "stack" else self.trace.tensors[uid].shape[dim], by_position.get(i, nobody))
            for i, uid in enumerate(op.inputs)
        ]
        if on_batch:
            parts = [part for size, own in parts for part in inlined(size, own, dim)]
        return replace(lineage, segments=Segments(dim, tuple(parts), meeting, on_batch, on_batch))

    def _kept_parts(self, op: Call, dim: int, operands: tuple[Met, ...]) -> Segments | None:
        """The parts of tensors that hold the same concatenation, joined along another axis than that."""
        segments = alike([m.lineage.segments for m in operands])
        if segments is None or len(operands) != len(op.inputs):
            return None
        if op.row.axes == "stack":
            return replace(segments, dim=segments.dim + (dim <= segments.dim))
        return segments if segments.dim != dim else None

    def _elementwise(self, op: Call, kind: Family, operands: tuple[Met, ...]) -> Lineage:
        assert kind in ("sum", "product")
        result = self.trace.tensors[op.outputs[0]]
        if any(m.lineage.axes is not None for m in operands):
            return self._scores_elementwise(op, kind, operands, result)
        homes = [m.home for m in operands]
        extents = {m.position: self._extent(m.info) for m in operands}
        larger = _larger(operands, extents)
        if larger == "outer":
            return self._outer(op, kind, operands, extents)
        if not incomparable(homes):
            if len(set(homes)) == 1:
                lineage = self._same_home(op, kind, operands, result)
                if isinstance(larger, Met) or kind == "product" or len(homes[0]) == 1:
                    return lineage
                self._nested(op, kind, operands)
                return lineage
            for m in operands:
                self._mixed(m.lineage)
            if isinstance(larger, Met):
                return self._fused(operands, larger.home)
            if kind == "product":
                return self._fused(operands, min(homes, key=len))
            home, meeting = self._nested(op, kind, operands)
            return self._fused(operands, home, meeting)
        home = larger.home if isinstance(larger, Met) else union(homes)
        if kind == "sum" and larger is None and (stream := self._known_with(op, operands)) is not None:
            return self._fused(operands, stream.home)
        second = self._modulation(op, kind, operands)
        if second is not None:
            return self._fused(operands, home, second)
        gate = self._gate(operands, larger if isinstance(larger, Met) else None, kind)
        return self._fused(operands, home, self._meet(op, kind, operands, home, gate=gate))

    def _same_home(self, op: Call, kind: Family, operands: tuple[Met, ...], result: TensorInfo) -> Lineage:
        lineage = self._fused(operands, operands[0].home)
        segments = alike([m.lineage.segments for m in operands])
        if segments is not None and all(m.info.shape == result.shape for m in operands):
            return replace(lineage, segments=segments).changed()
        for m in operands:
            self._mixed(m.lineage)
        return lineage

    def _modulation(self, op: Call, kind: Family, operands: tuple[Met, ...]) -> int | None:
        """`gamma * x + beta`: the sum belongs to the point of the product."""
        if kind != "sum" or len(operands) != 2:
            return None
        for operand, other in (operands, operands[::-1]):
            root = self._root(operand.info.uid)
            if self.trace.tensors[root].shape != operand.info.shape:
                continue  # a part of the product: what it is added to is no shift of it
            for index, meeting in enumerate(self.meetings):
                same = meeting.kind == "product" and meeting.op.frame == op.frame and root in meeting.op.outputs
                if same and any(comparable(other.home, m.home) for m in meeting.operands if m.home != operand.home):
                    self._belongs(meeting, op, operands)
                    meeting.note = "scale and shift"
                    return index
        return None

    def _gate(self, operands: tuple[Met, ...], larger: Met | None, kind: Family) -> int | None:
        if kind != "product" or len(operands) != 2:
            return None
        if larger is not None:
            return next(m.position for m in operands if m is not larger)
        squashed = [m.position for m in operands if self._is_squashed(m)]
        return squashed[0] if len(squashed) == 1 else None

    def _is_squashed(self, operand: Met) -> bool:
        producer = self.producers.get(self._root(operand.info.uid))
        return producer is not None and self.trace.calls[producer].row.does("squashes")

    def _outer(self, op: Call, kind: Family, operands: tuple[Met, ...], extents: Extents) -> Lineage:
        axes: list[Home] = []
        rank = len(self.trace.tensors[op.outputs[0]].shape)
        for i in range(rank):
            owners = [m for m in operands if _size_at(extents[m.position], i, rank) > 1]
            axes.append(owners[0].home if len(owners) == 1 else NOBODY)
        homes = [m.home for m in operands]
        if not incomparable(homes):
            return self._fused(operands, max(homes, key=len))
        meeting = self._meet(op, "sum" if kind == "sum" else "product", operands, operands[0].home, outer=True)
        return replace(self._fused(operands, operands[0].home), axes=tuple(axes), scores=meeting)

    def _scores_elementwise(self, op: Call, kind: Family, operands: tuple[Met, ...], result: TensorInfo) -> Lineage:
        """Scores meet a bias, a mask, other scores, or the values they weigh: `(weights[..., None] * v).sum(1)`."""
        scores = next(m for m in operands if m.lineage.axes is not None)
        carried = carry_axes(
            scores.lineage, ax.Movement(ax.broadcast_map(scores.info.shape, result.shape), frozenset())
        )
        values = [m for m in operands if m.lineage.axes is None]
        for m in values if kind == "sum" else ():
            if m.info.shape == result.shape and len(operands) == 2 and self._is_ancestor(m, scores):
                return self._fused(operands, m.home)  # a residual: these were no scores, `q @ (kᵀ v)` for one
        lineage = replace(self._fused(operands, carried.home), axes=carried.axes, scores=carried.scores)
        stretched = result.shape != scores.info.shape  # over channels; else the scores themselves are scaled
        if kind == "product" and scores.lineage.scores is not None and values and stretched:
            self._weigh(scores.lineage.scores, op, tuple(values))
            return lineage.giving(union(m.home for m in values))
        return lineage

    def _weigh(self, meeting: int, op: Call, values: tuple[Met, ...]) -> None:
        """The scores of `meeting` weigh values: together they are one attention."""
        found = self.meetings[meeting]
        if found.kind in ("matmul", "sum", "product", "similarity"):
            found.kind = "attention"
        self._belongs(found, op, values)

    def _matmul(self, op: Call, operands: tuple[Met, ...]) -> Lineage:
        result = self.trace.tensors[op.outputs[0]]
        outcome = contract(op, operands, result, self.trace)
        for m in operands:
            self._mixed(m.lineage)
        if outcome is None:
            return self._weighed_at_once(op, operands) or self._join(op, "matmul", operands)
        lineage = self._fused(operands, outcome.home)
        if outcome.weighed is not None:
            self._weigh(outcome.weighed, op, outcome.values)
            return replace(lineage, axes=outcome.axes).giving(union(m.home for m in outcome.values))
        homes = [m.home for m in operands if m.lineage.axes is None]
        if not incomparable(homes):
            return replace(lineage, axes=outcome.axes, scores=operands[0].lineage.scores)
        between_samples = len(self.varying.get(result.uid, ())) > 1
        cosine = all(is_unit(m.info.uid, self.trace, self.producers, self.lineages) for m in operands)
        kind: Kind = "similarity" if between_samples or cosine or op.row.family == "similarity" else "matmul"
        meeting = self._meet(op, kind, operands, outcome.home)
        return replace(lineage, axes=outcome.axes, scores=meeting if outcome.axes else None)

    def _weighed_at_once(self, op: Call, operands: tuple[Met, ...]) -> Lineage | None:
        """`einsum("bvk,bvq,bqk->bk", v, weights, q)`: scores that weigh both their streams in one product."""
        scores = next((m for m in operands if m.lineage.scores is not None), None)
        if scores is None or scores.lineage.scores is None or len(operands) < 3:
            return None
        self._weigh(scores.lineage.scores, op, tuple(m for m in operands if m is not scores))
        return self._fused(operands, union(m.home for m in operands))

    def _attention(self, op: Call, operands: tuple[Met, ...]) -> Lineage:
        query = next((m for m in operands if m.position == op.row.query), operands[0])
        for m in operands:
            self._mixed(m.lineage)
        others = [m.home for m in operands if not comparable(query.home, m.home)]
        if others:
            lineage = self._fused(operands, query.home, self._meet(op, "attention", operands, query.home))
            return lineage if op.row.adds_query else lineage.giving(union(others))
        return self._fused(operands, query.home)

    def _join(self, op: Call, kind: Family, operands: tuple[Met, ...]) -> Lineage:
        homes = [m.home for m in operands]
        for m in operands:
            self._mixed(m.lineage)
        if not incomparable(homes):
            return self._fused(operands, max(homes, key=len))
        name: Kind = "module" if kind == "other" else kind
        home = homes[0] if op.row.does("recurrent") else union(homes)
        return self._fused(operands, home, self._meet(op, name, operands, home))


def _size_at(shape: tuple[int, ...], axis: int, rank: int) -> int:
    index = axis - (rank - len(shape))
    return shape[index] if index >= 0 else 1


def _larger(operands: tuple[Met, ...], extents: Extents) -> Met | str | None:
    """The one operand that fills the result, "outer" where several stretch each other, None for equal shapes."""
    rank = max(map(len, extents.values()))
    result = [max(_size_at(shape, i, rank) for shape in extents.values()) for i in range(rank)]
    full = [m for m in operands if all(_size_at(extents[m.position], i, rank) == n for i, n in enumerate(result))]
    if len(full) == len(operands):
        return None
    if not full:
        return "outer"
    homes = {m.home for m in full}
    return full[0] if len(homes) == 1 else None
