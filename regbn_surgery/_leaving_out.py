"""The surgery without the points at which it fails: one bad point keeps RegBN from no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from ._analysis import Analysis
from ._codes import coded, kept
from ._errors import AlreadyRewrittenError, RewriteError
from ._surgery import perform, undo
from ._types import Plan, PlannedSite

#: The id of a fusion point, or a pair: its sites go in together or not at all.
_Place = tuple[str | None, tuple[str, str] | None]


def perform_borne(model: nn.Module, plan: Plan, analysis: Analysis, *, strict: bool) -> Plan:
    """Put RegBN into `model`, in place, at the sites of `plan` where that can be done.

    Args:
        strict: whether a point at which it cannot be done is an error. A pair always is.

    Returns:
        The plan that was done, with a warning for each point that was left out.

    Raises:
        RewriteError: where nothing can be done, and where `strict`; `model` is then as it was.
    """
    try:
        perform(model, plan, analysis)
    except AlreadyRewrittenError:
        raise
    except RewriteError as error:
        places = list(dict.fromkeys(map(_place, plan.sites)))
        if strict or len(places) < 2:
            raise
        failed: dict[_Place, str] = {}
        _bisect(model, plan, analysis, (), places, failed)
        done = _at(plan, [place for place in places if place not in failed]).sites
        if not done or any(pair is not None for _, pair in failed):  # a pair is named outright, and so wanted
            raise
        whys = [
            coded("RB103", f"left out: RegBN cannot go to {_named(plan, place)}: {why}")
            for place, why in failed.items()
        ]
        plan = dataclasses.replace(plan, sites=done, warnings=(*plan.warnings, *kept(whys, plan.ignore)))
        try:
            perform(model, plan, analysis)
        except RewriteError as again:
            raise error from again
    return plan


def _place(site: PlannedSite) -> _Place:
    return site.point, site.pair


def _at(plan: Plan, places: Sequence[_Place]) -> Plan:
    return dataclasses.replace(plan, sites=tuple(site for site in plan.sites if _place(site) in places))


def _bisect(
    model: nn.Module,
    plan: Plan,
    analysis: Analysis,
    good: tuple[_Place, ...],
    places: Sequence[_Place],
    failed: dict[_Place, str],
) -> tuple[_Place, ...]:
    """The places that can go in together with those known to be `good`; fills `failed` with the reasons of others."""
    try:
        perform(model, _at(plan, (*good, *places)), analysis)
    except RewriteError as error:
        if len(places) == 1:
            failed[places[0]] = str(error)
            return good
        half = len(places) // 2
        good = _bisect(model, plan, analysis, good, places[:half], failed)
        return _bisect(model, plan, analysis, good, places[half:], failed)
    undo(model)
    return (*good, *places)


def _named(plan: Plan, place: _Place) -> str:
    point, pair = place
    where = f"`{point}`" if point is not None else " with ".join(pair or ())
    return f"{where} ({', '.join(site.path for site in _at(plan, [place]).sites)})"
