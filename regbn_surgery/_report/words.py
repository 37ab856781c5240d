"""Sentences that several formats share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .._codes import coded, is_minor, kept
from .._types import Inspection

#: So many names are listed before a note that holds for all of them.
_NAMED = 4


#: So many notes are shown to who does not ask for all.
FEW = 10


def all_notes(inspection: Inspection) -> list[str]:
    """Everything said about an inspection beside its points, the most useful first, alike notes as one.

    What is in the way of RegBN; what was noted of the run; what is said of single points; inputs left out.
    """
    points = inspection.fusion_points
    obstacles = [(s.obstacle, f"`{p.id}`") for p in points for s in p.sites if s.obstacle]
    remarks = [(p.note, f"`{p.id}`") for p in points if p.note]
    excluded = [(item.reason, f"`{item.name}`") for item in inspection.excluded]
    ignore = inspection.ignore
    notes = [
        *(coded("RB013", f"{names}: RegBN cannot go there: {why}") for why, names, _ in _together(obstacles)),
        *inspection.notes,
        *(coded("RB014", f"{names}: {remark}") for remark, names, _ in _together(remarks)),
        *(
            coded("RB015", f"{names} {'are' if many else 'is'} not counted as a modality: {reason}")
            for reason, names, many in _together(excluded)
        ),
    ]
    return [*kept((note for note in notes if not is_minor(note)), ignore), *kept(filter(is_minor, notes), ignore)]


def _together(told: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, bool]]:
    """What is told, each once, with the names of all of whom it is, and whether these are many."""
    whose: dict[str, dict[str, None]] = {}
    for what, name in told:
        whose.setdefault(what, {})[name] = None
    for what, names in whose.items():
        first, rest = list(names)[:_NAMED], len(names) - _NAMED
        yield what, ", ".join(first) + (f" and {rest} more" if rest > 0 else ""), len(names) > 1


def count_text(number: int, noun: str, plural: str = "") -> str:
    """`1 fusion point`, `2 fusion points`, `3 batches`."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"
