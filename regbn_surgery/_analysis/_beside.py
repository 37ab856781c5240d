"""Streams that go on beside an attention as they were: what a residual connection adds to its result.

RegBN at an attention changes what the attention reads. The residual connection reads the same stream by itself.
"""

from __future__ import annotations

from .._trace import Call
from ._runs import Run
from ._sites import Recipe

_JOINS = ("sum", "concat")


def goes_on_beside(run: Run, recipe: Recipe) -> int | None:
    """Of the attention of `recipe`: the tensor that its result is joined with next; None where there is none that
    carries a modality, and in a run without this attention."""
    wanted = recipe.owner, recipe.key
    for meeting in run.flow.meetings:
        if meeting.kind == "attention" and (run.trace.path_of(meeting.op), meeting.op.key) == wanted:
            return _joined_next(run, meeting.op)
    return None


def _joined_next(run: Run, attention: Call) -> int | None:
    made = set(attention.outputs)
    for call in run.trace.calls[attention.index + 1 :]:
        if made.isdisjoint(call.inputs):
            continue
        lineages = {uid: run.flow.lineages.get(uid) for uid in call.inputs if uid not in made}
        others = [uid for uid, lineage in lineages.items() if lineage is not None and lineage.touched]
        if others and call.row.family in _JOINS:
            return others[0]
        made.update(call.outputs)  # the values that an attention in several calls weighs are no end of it
    return None
