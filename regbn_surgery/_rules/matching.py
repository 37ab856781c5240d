"""Which fusion points a `match` selects, and where it does not, which of its clauses failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .._types import NEVER_BY_DEFAULT, FusionPoint, Inspection
from .naming import home_name, names_part
from .patterns import matches
from .problems import listing
from .schema import Match


@dataclass(frozen=True)
class Selection:
    """The selected points, and for each of the others the clauses that failed, as sentences."""

    points: tuple[FusionPoint, ...]
    failed: dict[str, tuple[str, ...]]


def select(match: Match, inspection: Inspection, *, naming: bool) -> Selection:
    """Apply a match to all points. With `naming`, kinds and levels that are off by default must be named."""
    failed: dict[str, tuple[str, ...]] = {}
    fitting: list[FusionPoint] = []
    for point in inspection.fusion_points:
        clauses = _failures(match, point, inspection)
        if naming and not clauses:
            clauses = _unnamed(match, point)
        if clauses:
            failed[point.id] = tuple(clauses)
        else:
            fitting.append(point)
    if match.nth is None:
        return Selection(tuple(fitting), failed)
    wanted = {index % len(fitting) for index in match.nth if -len(fitting) <= index < len(fitting)}
    for index, point in enumerate(fitting):
        if index not in wanted:
            failed[point.id] = (f"it is number {index} of {len(fitting)}, not nth {_spell_nth(match.nth)}",)
    return Selection(tuple(point for index, point in enumerate(fitting) if index in wanted), failed)


def meets(point: FusionPoint, between: Sequence[str]) -> bool:
    """Whether each named modality is in another one of the homes that meet at the point."""
    return _assign(list(between), list(meeting_homes(point)))


def meeting_homes(point: FusionPoint) -> tuple[tuple[str, ...], ...]:
    """The distinct homes at a point: of its operands and of the tensors that RegBN would take."""
    homes = dict.fromkeys(point.homes)
    for site in point.sites:
        homes.update(dict.fromkeys(side.home for side in site.sides if side.home))
    return tuple(homes)


def _assign(names: list[str], homes: list[tuple[str, ...]]) -> bool:
    if not names:
        return True
    return any(
        names_part(names[0], home) and _assign(names[1:], homes[:index] + homes[index + 1 :])
        for index, home in enumerate(homes)
    )


def _failures(match: Match, point: FusionPoint, inspection: Inspection) -> list[str]:
    out: list[str] = []
    if match.kind is not None and point.kind not in match.kind:
        out.append(f"kind is {point.kind}, not {_spell(match.kind)}")
    if match.owner is not None:
        names = (point.owner,) if point.owner else ("", inspection.model)  # the root goes by its class name too
        if not any(matches(pattern, name) for pattern in match.owner for name in names):
            owner = f"`{point.owner}`" if point.owner else f"the root (`{inspection.model}`)"
            out.append(f"owner is {owner}, which {listing(match.owner)} does not match")
    if match.between is not None and not meets(point, match.between):
        out.append(f"what meets is {spell_homes(meeting_homes(point))}, not {' with '.join(match.between)}")
    if match.point is not None and not any(matches(pattern, point.id) for pattern in match.point):
        out.append(f"the point is `{point.id}`, which {listing(match.point)} does not match")
    if match.level is not None and point.level not in match.level:
        out.append(f"level is {point.level}, not {_spell(match.level)}")
    return out


def _unnamed(match: Match, point: FusionPoint) -> list[str]:
    if point.kind in NEVER_BY_DEFAULT and (match.kind is None or point.kind not in match.kind):
        return [f"a {point.kind} is only normalised where the rule names it (`kind: {point.kind}`)"]
    if point.level == "remeeting" and (match.level is None or "remeeting" not in match.level):
        return ["streams that meet again are only normalised where the rule names them (`level: remeeting`)"]
    named = match.kind is not None and point.kind in match.kind
    if not point.selected_by_default and point.level != "remeeting" and not named:
        why = f" ({point.note})" if point.note else ""
        return [f"it is not selected by default{why}; name it by `kind: {point.kind}`"]
    return []


def spell_homes(homes: Sequence[tuple[str, ...]]) -> str:
    """`gray with colored`, `image+text with audio`."""
    return " with ".join(home_name(home) for home in homes) or "nothing"


def _spell(names: Sequence[str]) -> str:
    return " or ".join(names)


def _spell_nth(nth: Sequence[int]) -> str:
    return " or ".join(str(index) for index in nth)
