"""What a plan was made for: each fusion point in words, compared again before the plan is applied."""

from __future__ import annotations

import dataclasses

from .._errors import PlanError
from .._rules.naming import home_name
from .._types import FusionPoint, Inspection, Plan, PlannedSite, Side, Site
from .placing import ResolvePair


def described_points(inspection: Inspection) -> tuple[tuple[str, str], ...]:
    """(id, words) for every fusion point: the words differ where a plan for one would not do for the other.

    The batch size and the number of tokens of the example do not count.
    """
    return tuple((point.id, _words(point)) for point in inspection.fusion_points)


def rebind(plan: Plan, inspection: Inspection, resolve: ResolvePair) -> Plan:
    """The plan with the sites of this very analysis in place of those it was made from.

    Raises PlanError, saying what differs, where the model is not the one that the plan was made for.
    """
    problems = _differences(plan, inspection)
    points = {point.id: point for point in inspection.fusion_points}
    sites: list[PlannedSite] = []
    taken: set[tuple[str, int]] = set()
    for site in plan.sites:
        if site.pair is not None:
            try:
                host, f, g, *_ = resolve(*site.pair, site.replace)
            except PlanError as error:
                problems.append(str(error))
                continue
            before, now = _pair_words(site.host, site.f, site.g), _pair_words(host, f, g)
            if before != now:
                problems.append(f"the pair {' with '.join(site.pair)} was {before}; it is {now}")
            sites.append(_bound(site, f, g))
            continue
        assert site.point is not None, "a site is at a point or at a pair"
        found = _find(site, points.get(site.point), taken)
        if found is None:
            if not problems:
                problems.append(f"`{site.point}` has no site like the one of {site.name}: {_site_words(site.site)}")
            continue
        sites.append(found)
    if problems:
        lines = "".join(f"\n  {text}" for text in problems)
        raise PlanError(
            f"The plan was made for another model ({plan.model or 'unknown'}), or for other inputs or modalities:"
            f"{lines}\nMake a plan for this one: plan(model, rules, example_inputs)."
        )
    return dataclasses.replace(plan, sites=tuple(sites))


def _differences(plan: Plan, inspection: Inspection) -> list[str]:
    out = []
    if plan.model != inspection.model:
        out.append(f"the model is a {inspection.model}, not a {plan.model}")
    before, now = dict(plan.points), dict(described_points(inspection))
    for name, words in before.items():
        if name not in now:
            out.append(f"`{name}` is gone: {words}")
        elif now[name] != words:
            out.append(f"`{name}` was {words}; it is {now[name]}")
    out += [f"`{name}` is new: {words}" for name, words in now.items() if name not in before]
    return out


def _find(site: PlannedSite, point: FusionPoint | None, taken: set[tuple[str, int]]) -> PlannedSite | None:
    if point is None or site.site is None:
        return None
    wanted = _site_words(site.site)
    forward = site.f == site.site.sides[0]
    candidates = [(i, found) for i, each in enumerate(point.sites) for found in (each, each.by_rows())]
    for index, candidate in candidates:
        if candidate is not None and (point.id, index) not in taken and _site_words(candidate) == wanted:
            taken.add((point.id, index))
            f, g = candidate.sides if forward else candidate.sides[::-1]
            return _bound(dataclasses.replace(site, site=candidate), f, g)
    return None


def _bound(site: PlannedSite, f: Side, g: Side) -> PlannedSite:
    """The sides of this analysis, with what the plan knows of their causality."""
    f, g = dataclasses.replace(f, causal=site.f.causal), dataclasses.replace(g, causal=site.g.causal)
    return dataclasses.replace(site, f=f, g=g)


def _words(point: FusionPoint) -> str:
    where = point.owner or "the root"
    sites = " | ".join(_site_words(site) for site in point.sites) or "no site"
    return f"{point.kind} ({point.op}) by {point.owner_class} at {where}, {point.level}: {sites}"


def _site_words(site: Site | None) -> str:
    if site is None:
        return "nothing"
    sides = " with ".join(_side_words(side) for side in site.sides)
    extra = "" if site.gate is None else f", side {site.gate} gates"
    role = "" if site.role == 0 else f", role {site.role}"
    return f"{sides} by {site.reduce}{extra}{role}"


def _pair_words(host: str, f: Side, g: Side) -> str:
    return f"{_side_words(f)} with {_side_words(g)} in {host or 'the root'}"


def _side_words(side: Side) -> str:
    home = home_name(side.home)
    if not side.layout.known:
        return f"{home} (layout unknown)"
    spatial = "tokens" if side.layout.sequence else "×".join(str(size) for size in side.spatial_shape)
    return f"{home} {side.channels}{' of ' + spatial if side.layout.spatial_dims else ''} ({side.anchor})"
