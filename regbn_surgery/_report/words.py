"""Sentences that several formats share."""

from __future__ import annotations

from .._types import Inspection


def all_notes(inspection: Inspection) -> list[str]:
    """Everything said about an inspection beside its points: inputs left out, what was noted, what is in the way."""
    notes = [f"input `{item.name}` counts for no modality: {item.reason}" for item in inspection.excluded]
    notes += inspection.notes
    for point in inspection.fusion_points:
        if point.note:
            notes.append(f"`{point.id}`: {point.note}")
        for obstacle in dict.fromkeys(site.obstacle for site in point.sites if site.obstacle):
            notes.append(f"`{point.id}`: RegBN cannot go there: {obstacle}")
    return notes


def count_text(number: int, noun: str, plural: str = "") -> str:
    """`1 fusion point`, `2 fusion points`, `3 batches`."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"
