"""What a person should know beside the fusion points: on what the findings depend, and what was not found."""

from __future__ import annotations

from collections.abc import Sequence

from .._types import FusionPoint
from ._points import Found
from ._runs import Run
from ._sources import Sources


def find_notes(runs: Sequence[Run], sources: Sources, found: Sequence[Found]) -> list[str]:
    """Guards, effects, gaps, stretches that nothing parts, and branches that never meet."""
    return [*_guards(runs), *_gaps(runs), *_blends(runs, sources), *_never_met(sources, found)]


def _guards(runs: Sequence[Run]) -> list[str]:
    notes = []
    reads = {(read.what, str(read.source)) for run in runs for read in run.trace.reads}
    for what, source in sorted(reads):
        notes.append(
            f"a tensor's value is read into Python ({what}) at {source}: what follows may depend on the values"
        )
    for effect in sorted({effect for run in runs for effect in run.trace.effects}):
        notes.append(effect)
    return notes


def _blends(runs: Sequence[Run], sources: Sources) -> list[str]:
    notes = []
    blends = {home: op for run in reversed(runs) for home, op in run.flow.blends}
    for home, op in blends.items():
        what = f"{op.name} `{op.module}`" if op.module else f"`{op.name}`"
        names = " and ".join(f"`{m.name}`" for m in sources.modalities if m.name in home)
        notes.append(
            f"{names} are stretches of one input that {what} at {op.source} takes together: no call parts them"
        )
    return notes


def _never_met(sources: Sources, found: Sequence[Found]) -> list[str]:
    notes = []
    met: set[frozenset[str]] = set()
    for f in found:
        met.update(_pairs(f.point))
    names = [modality.name for modality in sources.modalities]
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if frozenset({first, second}) not in met:
                notes.append(f"`{first}` never meets `{second}`")
    if len(names) < 2:
        notes.append("fewer than two modalities: nothing can meet; name them with modalities=...")
    return notes


def _gaps(runs: Sequence[Run]) -> list[str]:
    """Tensors that come into the model out of sight. A constant is the same object in every run; these are not."""
    if len(runs) < 2:
        return []
    constants = [{id(held) for s in run.trace.strangers if (held := s.tensor()) is not None} for run in runs]
    notes = []
    for run, others in zip(runs, reversed(constants), strict=True):
        for stranger in run.trace.strangers:
            held = stranger.tensor()
            if held is None or id(held) not in others:
                notes.append(
                    f"a tensor of shape {stranger.shape} is made out of sight (by numpy, a scripted function or an "
                    f"extension) and met at {stranger.where}: what modality it carries is not known"
                )
    return list(dict.fromkeys(notes))


def _pairs(point: FusionPoint) -> set[frozenset[str]]:
    """The modalities that a point brings together, those that reach it inside another's stream included."""
    meeting = [(i, j) for i in point.operands for j in point.operands if i.home != j.home]
    return {frozenset({a, b}) for i, j in meeting for a in i.modalities for b in j.modalities if a != b}
