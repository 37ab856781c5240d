"""Homes that contain one another: residual connections, re-entries, and streams that have met before."""

from __future__ import annotations

import itertools

from .._later import nx
from .._trace import Call
from .._types import Kind
from ._lineage import Home
from ._met import Met
from ._noted import Noted


class Nested(Noted):
    """What a call makes of a joint stream and one of those in it, or of two joint streams."""

    def _nested(self, op: Call, kind: Kind, operands: tuple[Met, ...]) -> tuple[Home, int | None]:
        """Homes that contain one another: a residual connection, a re-entry, or two mixed streams that re-meet."""
        homes = {m.home for m in operands}
        biggest = max(operands, key=lambda m: len(m.home))
        if len(homes) == 1:
            if len(biggest.home) > 1 and self._remeets(operands):
                note = "streams of equal mixed home meet again"
                return biggest.home, self._meet(op, kind, operands, biggest.home, level="remeeting", note=note)
            return biggest.home, None
        pure = [m for m in operands if m.home != biggest.home]
        if kind == "sum" and (self._continues(op, biggest) or self._is_added_again(op, pure, biggest)):
            return biggest.home, None
        if all(self._is_ancestor(small, biggest) for small in pure):
            return min((m.home for m in pure), key=len), None
        if all(self._comes_again(small, biggest) for small in pure):
            return biggest.home, None
        note = "a mixed stream meets a pure one again"
        return biggest.home, self._meet(op, kind, operands, biggest.home, note=note, real=kind != "concat")

    def _remeets(self, operands: tuple[Met, ...]) -> bool:
        if not all(m.lineage.origins for m in operands):
            return False
        return any(
            not a.lineage.origins & b.lineage.origins
            and not any(self._is_ancestor(*pair) or self._goes_around(*pair) for pair in ((a, b), (b, a)))
            for a, b in itertools.combinations(operands, 2)
        )

    def _goes_around(self, skip: Met, stream: Met) -> bool:
        """Whether `skip` leads a joint stream around a part of itself, by layers of its own, as in a decoder.

        `stream` is then computed from where `skip` was joined, and joined nowhere else than before and after that.
        """
        behind = self._behind(stream.info.uid)
        starts = {self.meetings[index].op.index for index in skip.lineage.origins}
        if not starts <= behind:
            return False
        joined = {m.op.index for m in self.meetings if m.home == stream.home and m.op.index in behind}
        before = {index: nx.ancestors(self.graph, index) for index in joined | starts}
        return all(a == b or a in before[b] or b in before[a] for a in starts for b in joined)

    def _is_added_again(self, op: Call, pure: list[Met], mixed: Met) -> bool:
        """Whether `op` adds to a joint stream what is added to it in every layer, as codes of positions are.

        Unlike the stream that a residual connection carries, this has been added to what is not computed from it: to
        its own stream before that met others, or to the joint one.
        """
        if len(pure) != 1:
            return False
        uid = pure[0].info.uid
        for other, beside in self.added_with(uid):
            lineage = self.lineages.get(beside)
            known = other.index < op.index and lineage is not None and pure[0].home <= lineage.home
            if known and not self._depends(beside, uid):
                return True
        if self._is_ancestor(pure[0], mixed):
            return False
        later = [(other, beside) for other, beside in self.added_with(uid) if other.index > op.index]
        return any(self.is_same(beside, mixed.info.uid) or self._leads_to(op, other) for other, beside in later)

    def _known_with(self, op: Call, operands: tuple[Met, ...]) -> Met | None:
        """The stream to which the other operand has been added before, so that it is no news to it."""
        for stream, again in (operands, operands[::-1]) if len(operands) == 2 else ():
            for other, beside in self.added_with(again.info.uid):
                lineage = self.lineages.get(beside)
                before = other.index < op.index and lineage is not None and lineage.home == stream.home
                if before and self._depends(stream.info.uid, other.outputs[0]):
                    return stream
        return None

    def _continues(self, op: Call, mixed: Met) -> bool:
        """Whether `op` is the second half of a modulation `gamma * x + beta`, whose product has been counted."""
        root = self._root(mixed.info.uid)
        for index, meeting in enumerate(self.meetings):
            if meeting.kind == "product" and root in meeting.op.outputs and meeting.op.frame == op.frame:
                return index in mixed.lineage.origins or not mixed.lineage.origins
        return False
