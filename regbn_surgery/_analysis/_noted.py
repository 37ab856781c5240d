"""The meetings of a run as they are noted: which concatenations count, and which calls belong to one point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from .._trace import Call, Trace
from .._types import Kind
from ._history import History
from ._lineage import Home, Lineage, fuse, incomparable, union
from ._met import Meeting, Met


class Noted(History):
    """What has been found so far: the lineage of each tensor, and the meetings in order."""

    def __init__(
        self,
        trace: Trace,
        sources: Mapping[int, Lineage],
        batch_axes: Mapping[int, int],
        varying: Mapping[int, tuple[int, ...]],
    ) -> None:
        super().__init__(trace)
        self.lineages: dict[int, Lineage] = dict(sources)
        self.batch_axes = batch_axes
        self.varying = varying
        self.meetings: list[Meeting] = []
        self.blends: dict[Home, Call] = {}
        self.stacked: dict[Home, Call] = {}
        self.ends: list[tuple[Home, Call]] = []
        self.op: Call | None = None
        self.whole: dict[int, Met] = {}  # the operands of a call on stacks, while its parts are followed
        # Who shares memory, so that a write through one view is seen through the others.
        self.by_storage: dict[int, list[int]] = {}
        for info in trace.tensors.values():
            if info.storage >= 0:
                self.by_storage.setdefault(info.storage, []).append(info.uid)

    @contextmanager
    def one_of_many(self, op: Call, operands: tuple[Met, ...]) -> Iterator[None]:
        """While a call on stacks is followed part by part: the meetings of all parts are one, of the whole tensors."""
        first, outer = len(self.meetings), self.whole
        self.whole = outer or {m.position: m for m in operands}
        yield
        self.whole, made = outer, self.meetings[first:]
        if made:
            self.meetings[first:] = [_as_one(made)]

    def _mixed(self, lineage: Lineage | None) -> None:
        """Something used the parts of a concatenation together: it counts."""
        if lineage is None or lineage.segments is None:
            return
        segments = lineage.segments
        if segments.samples and segments.batch:
            if self.op is not None:  # the samples of a batch, taken together
                self.stacked.setdefault(lineage.home, self.op)
        elif segments.meeting is not None:
            self.meetings[segments.meeting].real = True
        elif self.op is not None and _is_cut_input(lineage):
            self.blends.setdefault(lineage.home, self.op)
        for _, part in lineage.segments.parts:
            self._mixed(part)

    def _meet(self, op: Call, kind: Kind, operands: tuple[Met, ...], home: Home, **more: object) -> int:
        for operand in operands:
            self._mixed(operand.lineage)
        numbers = all(m.lineage.number for m in operands)
        if numbers or (kind in ("sum", "product") and not self.trace.tensors[op.outputs[0]].shape):
            kind, more = "loss", {}
        self.meetings.append(Meeting(op, kind, operands, home, **more))  # type: ignore[arg-type]
        return len(self.meetings) - 1

    def _fused(self, operands: tuple[Met, ...], home: Home, meeting: int | None = None) -> Lineage:
        base = fuse(m.lineage for m in operands)
        origins = base.origins if meeting is None else frozenset({meeting})
        return replace(base, home=home, origins=origins)

    def _belongs(self, meeting: Meeting, op: Call, operands: tuple[Met, ...]) -> None:
        """A later call is a part of the same point; of a call on stacks, the whole tensors."""
        if all(known is not op for known, _ in meeting.more):
            meeting.more.append((op, tuple(self.whole.get(m.position, m) for m in operands)))


def _as_one(made: list[Meeting]) -> Meeting:
    """The meetings of one call in the parts of its stacks as a meeting of the stacks."""
    first = made[0]
    met = [[m for each in made for m in each.operands if m.position == one.position] for one in first.operands]
    homes = [union(m.home for m in same) for same in met]
    if incomparable(homes):  # else the stacks hold the same streams in another order
        whole = [fuse(m.lineage for m in same) for same in met]
        first.operands = tuple(replace(one, lineage=each) for one, each in zip(first.operands, whole, strict=True))
    first.home = union(each.home for each in made)
    first.real = any(each.real for each in made)
    return first


def _is_cut_input(lineage: Lineage) -> bool:
    """Whether this is an input of several modalities, each a stretch of it: a concatenation that no call has made."""
    parts = lineage.segments.parts if lineage.segments is not None else ()
    return len(lineage.home) > 1 and not lineage.origins and all(len(part.home) <= 1 for _, part in parts)
