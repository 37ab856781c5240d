"""Follow the modalities through a captured run, and note every call at which streams meet.

An abstract interpretation of the trace: each tensor's `Lineage` is computed from its operands', in the order of the
run. Here is how a lineage passes through one operation; what several operands make of each other is in `_meetings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from .._later import nx
from .._trace import Call, TensorInfo, Trace, tensor_of
from . import _axes as ax
from ._lineage import NOBODY, Home, Lineage, Piece, Segments, carry_axes, fuse, union
from ._meetings import Meetings
from ._met import Meeting, Met
from ._parts import carry_segments, shared_parts, sized


@dataclass(frozen=True)
class Flow:
    """What `follow` found: the meetings in order, every tensor's lineage, and the run as a graph of operations."""

    meetings: tuple[Meeting, ...]
    lineages: Mapping[int, Lineage]
    graph: nx.DiGraph[int]
    producers: Mapping[int, int]
    noted: tuple[Meeting, ...] = ()  # all that a lineage's origins number, those included that turned out to be none
    blends: tuple[tuple[Home, Call], ...] = ()  # modalities of one input that an operation takes together, unparted
    stacked: tuple[tuple[Home, Call], ...] = ()  # streams in one batch that an operation takes together
    ends: tuple[tuple[Home, Call], ...] = ()  # calls that read a stream and make nothing that carries it on


def follow(
    trace: Trace,
    sources: Mapping[int, Lineage],
    batch_axes: Mapping[int, int],
    varying: Mapping[int, tuple[int, ...]],
    roots: Mapping[int, Sequence[tuple[int, Lineage]]] | None = None,
) -> Flow:
    """Interpret the trace.

    Args:
        trace: the captured run.
        sources: lineage of each source tensor, by uid.
        batch_axes: the axis of each tensor that counts samples, folded with something else or not, by uid.
        varying: all axes of each tensor whose size follows the batch size.
        roots: tensors that begin a branch of their own, with their lineage, by the operation after which they do.
    """
    interpreter = _Interpreter(trace, sources, batch_axes, varying)
    for op in trace.calls:
        interpreter.step(op)
        for uid, lineage in (roots or {}).get(op.index, ()):
            interpreter.lineages[uid] = lineage
    return interpreter.finish()


class _Interpreter(Meetings):
    """One run being followed."""

    def finish(self) -> Flow:
        ends, stacked = tuple(self.ends), tuple(self.stacked.items())
        for uid in self.trace.frames[0].outputs:
            self._mixed(self.lineages.get(uid))
        return Flow(
            tuple(m for m in self.meetings if m.real),
            self.lineages,
            self.graph,
            self.producers,
            tuple(self.meetings),
            tuple(self.blends.items()),
            stacked,
            ends,
        )

    # -- one operation ----------------------------------------------------------------------------------------

    def step(self, op: Call) -> None:
        self.op = op
        self.graph.add_node(op.index)
        for uid in op.inputs:
            if uid in self.producers:
                self.graph.add_edge(self.producers[uid], op.index)
        operands = self._operands(op)
        if operands and op.row.carries != "nothing":
            for uid, lineage in zip(op.outputs, self._results(op, operands), strict=True):
                self._assign(op, uid, self._computed(op, lineage, uid))
        for uid in op.outputs:
            self.producers[uid] = op.index
        if not any(uid in self.lineages for uid in op.outputs):
            self._note_end(op)

    def _note_end(self, op: Call) -> None:
        read = union(self.lineages[uid].touched for uid in op.inputs if uid in self.lineages)
        if read:
            self.ends.append((read, op))

    def _operands(self, op: Call) -> tuple[Met, ...]:
        met = []
        for position, uid in enumerate(op.inputs):
            lineage = self.lineages.get(uid)
            if lineage is None or not lineage.touched:
                continue
            met.append(Met(position, self.trace.tensors[uid], lineage))
        row = op.row
        if row.carries in ("first", "lookup"):
            first = [m for m in met if m.position == 0]
            return tuple(first) if first or row.carries == "first" else tuple(met)
        if row.content is not None:
            return tuple(m for m in met if m.position < row.content)
        if row.family == "scatter":
            return self._written_by(op, met)
        features = any(m.info.is_float for m in met) and any(self.trace.tensors[uid].is_float for uid in op.outputs)
        return tuple(m for m in met if not (features and m.lineage.codes))

    def _written_by(self, op: Call, met: list[Met]) -> tuple[Met, ...]:
        """Of a call that writes into a tensor, the operands with content: ids into ids, features into features.

        The places it writes to are none, unless nothing else says what is written: `zeros.scatter_(1, codes, 1.0)`.
        """
        into = self.trace.tensors[op.inputs[0]]
        if into.is_float:
            content = tuple(m for m in met if m.info.is_float)
        else:
            place = op.row.source
            written = None if place is None else tensor_of(op.args[place]) if len(op.args) > place else None
            source = op.inputs[-1] if place is None else None if written is None else written.uid
            content = tuple(m for m in met if m.position == 0 or m.info.uid == source)
        return content or tuple(m for m in met if m.lineage.codes)

    def _results(self, op: Call, operands: tuple[Met, ...]) -> list[Lineage]:
        """The lineage of each result."""
        if op.row.carries == "own" and len(op.outputs) == 2:
            return [self._own(op, operands, number) for number in range(len(op.outputs))]
        if len(operands) == 1:
            taken = self._take_apart(op, operands[0])
            if taken is not None:
                return [lineage.after_layers(operands[0].lineage.parametrised) for lineage in taken]
        stacks = [m.lineage.segments for m in operands if m.lineage.segments is not None and m.lineage.segments.batch]
        if stacks and not self._on_samples(op, operands):
            parted = self._part_by_part(op, operands)
            if parted is not None:
                return parted
        if len(operands) == 1 and not (stacks and self._on_samples(op, operands)):
            return self._pass_on(op, operands[0])
        return [self.interpret(op, operands)] * len(op.outputs)

    def _own(self, op: Call, operands: tuple[Met, ...], number: int) -> Lineage:
        """The lineage of the result that is made of argument `number` alone, of those of `RegBN.forward`."""
        given = op.kwargs.get("fg"[number], op.args[number] if number < len(op.args) else None)
        info = tensor_of(given)
        operand = next((m for m in operands if info is not None and m.info.uid == info.uid), None)
        return Lineage(NOBODY, NOBODY) if operand is None else self._pass_on(op, operand)[number]

    # -- streams that are stacked along the batch -----------------------------------------------------------------

    def _part_by_part(self, op: Call, operands: tuple[Met, ...]) -> list[Lineage] | None:
        """What the call makes of stacks is what it makes of each part; None where it takes the parts together."""
        stacks = [m.lineage.segments if m.lineage.segments and m.lineage.segments.batch else None for m in operands]
        shared = shared_parts(stacks)
        homes = [self._stack_after(op, operands, stacks, uid) for uid in op.outputs]
        if shared is None or None in homes:
            return None
        known = len(self.meetings)
        with self.one_of_many(op, operands):
            found = [self._of_part(op, operands, part.lineages) for part in shared]
        made = []
        for number, stack in enumerate(homes):
            assert stack is not None, "asked above"
            parts = [(part.share, lineages[number]) for part, lineages in zip(shared, found, strict=True)]
            segments = sized(stack, [(share, lineage.settled(known)) for share, lineage in parts])
            if segments is None:
                return None
            made.append(replace(fuse(part for _, part in segments.parts), segments=segments).changed())
        return [lineage.after_layers(any(m.lineage.parametrised for m in operands)) for lineage in made]

    def _of_part(self, op: Call, operands: tuple[Met, ...], own: tuple[Lineage | None, ...]) -> list[Lineage]:
        part = tuple(
            m if lineage is None else replace(m, lineage=lineage.after_layers(m.lineage.parametrised))
            for m, lineage in zip(operands, own, strict=True)
        )
        carrying = tuple(m for m in part if m.lineage.touched)
        return self._results(op, carrying) if carrying else [Lineage(NOBODY, NOBODY)] * len(op.outputs)

    def _stack_after(
        self, op: Call, operands: tuple[Met, ...], stacks: list[Segments | None], uid: int
    ) -> Segments | None:
        """Where the stack is in a result; None where samples are no longer apart there."""
        operand, stack = next((m, s) for m, s in zip(operands, stacks, strict=True) if s is not None)
        if len(operands) == 1:
            return self._carried(stack, _movement(op, operand, self.trace.tensors[uid]), operand.info, uid)
        return self._by_samples(stack, uid)

    def _computed(self, op: Call, lineage: Lineage, uid: int) -> Lineage:
        """With what the call itself says of its result: whether a layer has been there, and whether it is a number."""
        own = bool(op.traits.get("parametrised")) or any(
            self.trace.tensors[uid].parameter is not None for uid in op.inputs
        )
        if own and lineage.number:
            lineage = replace(lineage, number=False)
        if op.row.family == "loss" or not self.trace.tensors[uid].shape:
            lineage = lineage.as_number()
        return lineage.after_layers(own)

    def _assign(self, op: Call, uid: int, lineage: Lineage) -> None:
        info = self.trace.tensors[uid]
        if info.dtype == torch.bool:
            return
        if info.is_float:
            lineage = replace(lineage, codes=False) if lineage.codes else lineage
        elif any(self.trace.tensors[i].is_float for i in op.inputs):
            lineage = replace(lineage, codes=True)
        known = self.lineages.get(uid)
        self.lineages[uid] = lineage if known is None or uid not in op.inputs else self._written(known, lineage)
        if op.inplace:
            for other in self.by_storage.get(info.storage, ()):
                if other != uid:
                    before = self.lineages.get(other)
                    self.lineages[other] = lineage.plain() if before is None else self._written(before, lineage).plain()

    @staticmethod
    def _written(before: Lineage, written: Lineage) -> Lineage:
        return replace(written, touched=before.touched | written.touched)

    # -- one operand ------------------------------------------------------------------------------------------

    def _pass_on(self, op: Call, operand: Met) -> list[Lineage]:
        lineage, made = operand.lineage, []
        for uid in op.outputs:
            move = _movement(op, operand, self.trace.tensors[uid])
            new = carry_axes(lineage, move)
            if lineage.given and lineage.axes is None and _pools(op, operand.info, self.trace.tensors[uid]):
                new = replace(new, pooled=True)
            if lineage.segments is not None:
                new = replace(new, segments=self._carried(lineage.segments, move, operand.info, uid))
                if new.segments is None:
                    self._mixed(lineage)
            made.append(new if op.row.does("reshapes", "permutes", "casts", "drops_out") else new.changed())
        return made

    def _carried(self, segments: Segments, move: ax.Movement | None, source: TensorInfo, uid: int) -> Segments | None:
        found = carry_segments(segments, move, source.shape, self.trace.tensors[uid].shape)
        if found is not None:
            counted = self.batch_axes.get(uid)
            return replace(found, batch=segments.batch if counted is None else counted == found.dim)
        if not segments.batch or (move is not None and segments.dim in move.mixed):
            return None
        return self._by_samples(segments, uid)

    def _by_samples(self, stack: Segments, uid: int) -> Segments | None:
        """A stack of samples by the one axis of `uid` that counts them, whatever was done to the others."""
        dim, shape = self.batch_axes.get(uid), self.trace.tensors[uid].shape
        if dim is None or len(self.varying.get(uid, ())) > 1 or shape[dim] % stack.size:
            return None
        scale = shape[dim] // stack.size
        parts = tuple((size * scale, part) for size, part in stack.parts)
        return replace(stack, dim=dim, parts=parts, batch=True)

    def _take_apart(self, op: Call, operand: Met) -> list[Lineage] | None:
        """The lineages of the results where `op` cuts a concatenation along the axis it was made on."""
        segments = operand.lineage.segments
        if segments is None:
            return None
        rank = len(operand.info.shape)
        if op.row.does("splits") and ax.split_dim(op, rank) == segments.dim:
            pieces, start = [], 0
            for uid in op.outputs:
                size = 1 if op.row.axes == "unbind" else self.trace.tensors[uid].shape[segments.dim]
                part = self._cut(segments, start, start + size, segments.dim)
                pieces.append(_piece(operand.lineage, part, start, start + size))
                start += size
            return pieces
        if op.row.axes not in ("index", "select", "narrow"):
            return None
        entries = ax.index_entries(op, rank)
        if entries is None:
            return None
        place = [i for i, e in enumerate(entries) if e is not None][segments.dim]
        entry = entries[place]
        size = operand.info.shape[segments.dim]
        if isinstance(entry, int):
            low = entry % size
            return [_piece(operand.lineage, segments.cut(low, low + 1), low, low + 1)]
        low, high, step = entry.indices(size)
        if step > 1:
            turns = segments.every(low, step)
            return None if turns is None else [turns]
        if step != 1 or (low, high) == (0, size):
            return None
        dim = place - sum(isinstance(e, int) for e in entries[:place])
        return [_piece(operand.lineage, self._cut(segments, low, high, dim), low, high)]

    def _cut(self, segments: Segments, low: int, high: int, dim: int) -> Lineage:
        """A stretch of a concatenation. Across a seam it is a smaller one, on `dim` of the result."""
        parts = segments.within(low, high)
        whole = segments.cut(low, high)
        if len(parts) < 2:
            return whole
        if not segments.batch:
            for _, part in parts:
                self._mixed(part)  # what was concatenated within a part is not followed through the cut
            parts = [(size, part.plain()) for size, part in parts]
        if len({part.home for _, part in parts if part.home}) < 2:
            return whole
        return replace(whole, segments=replace(segments, dim=dim, parts=tuple(parts), rounds=1))


def _piece(whole: Lineage, part: Lineage, low: int, high: int) -> Lineage:
    """`part`, which a call has cut out of the concatenation `whole`."""
    segments = whole.segments
    if segments is None or segments.meeting is None or not segments.fresh or segments.rounds != 1:
        return part
    outer = whole.piece or Piece(segments.meeting)
    return replace(part, piece=outer.part(Fraction(low, segments.size), Fraction(high, segments.size)))


def _pools(op: Call, source: TensorInfo, result: TensorInfo) -> bool:
    """Whether the call gives up an axis of positions: by a sum over it, or by taking one of them."""
    fewer = op.row.axes == "reduce" or op.row.does("takes_part")
    return (fewer and len(result.shape) < len(source.shape)) or op.name.lower().startswith("adaptive")


def _movement(op: Call, operand: Met, result: TensorInfo) -> ax.Movement | None:
    shape = operand.info.shape
    if op.row.carries != "lookup" or operand.position == 0:
        return ax.movement(op, shape, result.shape)
    if op.row.axes in ("index", "index_select") and result.shape[: len(shape)] == shape:  # ids give rows of a table
        rows = range(len(result.shape))
        return ax.Movement(tuple((i,) if i < len(shape) else () for i in rows), frozenset())
    return None


__all__ = ["Flow", "Meeting", "Met", "follow"]
