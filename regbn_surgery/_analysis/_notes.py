"""What a person should know beside the fusion points, the most useful first: what was not found, what it rests on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from .._codes import coded
from .._trace import Call
from .._types import FusionPoint
from ._lineage import Home, union
from ._points import Found
from ._runs import Run
from ._sources import Sources

Pair = frozenset[str]


def find_notes(runs: Sequence[Run], sources: Sources, found: Sequence[Found]) -> list[str]:
    """Branches that never meet, streams that end, a RegBN that is there already, stretches that nothing parts, gaps,
    effects, and values read."""
    gaps = _gaps(runs)
    return [
        *_never_met(runs, sources, found, bool(gaps)),
        *_placed_by_hand(runs),
        *_blends(runs, sources),
        *gaps,
        *_effects(runs),
        *_reads(runs),
    ]


def _placed_by_hand(runs: Sequence[Run]) -> list[str]:
    calls = [op for run in runs for op in run.trace.calls if op.row.name == "RegBN" and op.module is not None]
    return [
        coded(
            "RB017",
            f"the model calls a RegBN of its own ({place}): what it makes of f and of g goes on as theirs. Rules put "
            "further ones in; take the call out of forward where a rule is to do it instead",
        )
        for place in dict.fromkeys(f"`{op.module}` at {op.source}" for op in calls)
    ]


def _effects(runs: Sequence[Run]) -> list[str]:
    return [coded("RB008", effect) for effect in sorted({effect for run in runs for effect in run.trace.effects})]


def _reads(runs: Sequence[Run]) -> list[str]:
    """One note for all values that are read into Python, by the classes whose code reads them."""
    places: dict[str, dict[str, set[str]]] = {}
    for run in runs:
        for read in run.trace.reads:
            where = str(read.source) if read.source is not None else "an unknown place"
            places.setdefault(read.reader, {}).setdefault(where, set()).add(read.what.strip("_"))
    if not places:
        return []
    readers = []
    for reader, found in sorted(places.items()):
        shown = ", ".join(f"{where} ({', '.join(sorted(what))})" for where, what in sorted(found.items()))
        readers.append(f"`{reader}` at {shown}" if reader else shown)
    text = (
        f"tensor values are read into Python: {'; '.join(readers)}. The result holds for inputs that take the same path"
    )
    return [coded("RB009", text)]


def _blends(runs: Sequence[Run], sources: Sources) -> list[str]:
    notes = []
    blends = {home: op for run in reversed(runs) for home, op in run.flow.blends}
    for home, op in blends.items():
        names = " and ".join(f"`{m.name}`" for m in sources.modalities if m.name in home)
        text = f"{names} are slices of one input, and {_call(op)} at {op.source} processes them together"
        notes.append(coded("RB006", text))
    return notes


def _call(op: Call) -> str:
    return f"{op.name} `{op.module}`" if op.module else f"`{op.name}`"


def _never_met(runs: Sequence[Run], sources: Sources, found: Sequence[Found], gaps: bool) -> list[str]:
    """Pairs that no point brings together; "never" only where both streams were followed to the end."""
    met: set[Pair] = set().union(*(_pairs(f.point) for f in found))
    names = [modality.name for modality in sources.modalities]
    apart = [pair for pair in itertools.combinations(names, 2) if frozenset(pair) not in met]
    notes: list[str] = []
    ended: dict[tuple[str, str], list[str]] = {}
    for first, second in apart:
        pair = f"`{first}` is not seen to meet `{second}`"
        together = _taken_together(runs, frozenset((first, second)))
        ends = {name: text for name in (second, first) if not _comes_out(runs, name) and (text := _end(runs, name))}
        if together is not None:
            where = f"{_call(together)} at {together.source}"
            notes.append(coded("RB003", f"{pair}: they are stacked into one batch, which {where} processes as a whole"))
        elif ends:
            name, text = next(iter(ends.items()))
            ended.setdefault((name, text), []).append(first if name == second else second)
        elif gaps:
            notes.append(coded("RB005", f"{pair}: some tensors are created by code that cannot be followed (RB007)"))
        else:
            notes.append(coded("RB002", f"`{first}` never meets `{second}`"))
    for (name, text), others in ended.items():
        known = " or ".join(f"`{other}`" for other in others)
        notes.append(coded("RB004", f"`{name}` is not seen to meet {known}: {text}"))
    if len(names) < 2:
        notes.append(coded("RB001", "fewer than two modalities: nothing can meet; name them with modalities=..."))
    return notes


def _taken_together(runs: Sequence[Run], pair: Pair) -> Call | None:
    return next((op for run in runs for home, op in run.flow.stacked if pair <= home), None)


def _comes_out(runs: Sequence[Run], name: str) -> bool:
    """Whether something that the model returns is computed from a modality, as far as can be seen."""
    return any(name in _touched(run, run.trace.frames[0].outputs) for run in runs)


def _touched(run: Run, uids: Iterable[int]) -> Home:
    return union(run.flow.lineages[uid].touched for uid in uids if uid in run.flow.lineages)


def _end(runs: Sequence[Run], name: str) -> str:
    """Where a modality was lost from which nothing that the model returns is computed; "" where it just is not used."""
    run = runs[0]
    ends = [op for touched, op in run.flow.ends if name in touched]
    if ends:
        return f"its stream ends at {ends[-1].source}, where {_call(ends[-1])} makes no features of it"
    places = dict.fromkeys(str(read.source) for read in run.trace.reads)
    if not places:
        return ""
    return f"its stream may go on in values that are read into Python at {', '.join(list(places)[:3])}"


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
                text = (
                    f"a tensor of shape {stranger.shape} is created by code that cannot be followed (numpy, a scripted "
                    f"function or an extension) and used at {stranger.where}: which modality it carries is not known"
                )
                notes.append(coded("RB007", text))
    return list(dict.fromkeys(notes))


def _pairs(point: FusionPoint) -> set[Pair]:
    """The modalities that a point brings together, those that reach it inside another's stream included."""
    meeting = [(i, j) for i in point.operands for j in point.operands if i.home != j.home]
    return {frozenset({a, b}) for i, j in meeting for a in i.modalities for b in j.modalities if a != b}
