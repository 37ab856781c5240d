"""Which tensor of a site is f (normalised) and which g: what the rules say, or what they leave open."""

from __future__ import annotations

from collections.abc import Mapping

from .._rules.matching import meeting_homes, spell_homes
from .._rules.naming import home_name, names_all, names_part
from .._types import FusionPoint, Side, Site
from .faults import Fault
from .hindrances import direction_lines

_KEYS = (("normalize",), ("against",))


def directed_sites(
    point: FusionPoint, normalize: str | None, against: str | None, all_pairs: bool, ranks: Mapping[str, int]
) -> tuple[list[tuple[Site, int, int]], list[Fault]]:
    """The sites of a point with the indices of f and g, and what keeps the direction open."""
    if all_pairs:
        return _all_pairs(point, ranks)
    homes = meeting_homes(point)
    if len(homes) > 2 and not (normalize and against):
        text = (
            f"{len(homes)} branches meet ({spell_homes(homes)}): write both `normalize:` and `against:`, "
            "or `pairs: all` for every pair in the order of `modalities`"
        )
        return [], [Fault(text, _KEYS)]
    chosen: list[tuple[Site, int, int]] = []
    problems: list[Fault] = []
    for site in point.sites:
        ways = _ways(site, normalize, against)
        if len(ways) == 1:
            chosen.append((site, *ways[0]))
        elif ways:
            problems.append(_ambiguous(site))
        elif len(homes) <= 2:
            problems.append(_absent(site, normalize, against))
    if not chosen and not problems and point.sites:
        text = (
            f"`{normalize}` and `{against}` do not meet there ({spell_homes(homes)} do); "
            f"add `between: [{normalize}, {against}]` to the match"
        )
        problems.append(Fault(text, _KEYS))
    return chosen, list(dict.fromkeys(problems))


def _ways(site: Site, normalize: str | None, against: str | None) -> list[tuple[int, int]]:
    """The directions that fit the named modalities; among several the one whose branches hold nothing else."""

    def fits(name: str | None, side: int) -> bool:
        return name is None or names_part(name, site.sides[side].home)

    def is_exactly(name: str | None, side: int) -> bool:
        return name is None or names_all(name, site.sides[side].home)

    ways = [(f, g) for f, g in ((0, 1), (1, 0)) if fits(normalize, f) and fits(against, g)]
    if len(ways) == 2 and (normalize or against):
        exact = [(f, g) for f, g in ways if is_exactly(normalize, f) and is_exactly(against, g)]
        return exact if len(exact) == 1 else ways
    return ways


def _all_pairs(point: FusionPoint, ranks: Mapping[str, int]) -> tuple[list[tuple[Site, int, int]], list[Fault]]:
    def rank(side: Side) -> tuple[int, ...]:
        return tuple(ranks.get(name, len(ranks)) for name in side.home)

    chosen: list[tuple[Site, int, int]] = []
    problems: list[Fault] = []
    for site in point.sites:
        first, second = (rank(side) for side in site.sides)
        if first == second:
            problems.append(_ambiguous(site))
            continue
        f = 0 if first < second else 1
        if site.gate is not None:
            f = 1 - site.gate  # a gate is never normalised, whatever the order
        elif sum(side.causal is True for side in site.sides) == 1:
            f = 0 if site.sides[0].causal else 1  # nothing may be taken from what a decoder has yet to say
        chosen.append((site, f, 1 - f))
    chosen.sort(key=lambda item: (rank(item[0].sides[item[1]]), rank(item[0].sides[item[2]])))
    return chosen, problems


def _ambiguous(site: Site) -> Fault:
    both = spell_homes([side.home for side in site.sides])
    if _same_names(site):
        text = (
            f"both sides carry the same modalities ({both}), so names cannot distinguish f from g; "
            'name the two tensors in a rule with `pair: {f: "module:PATH", g: "module:PATH"}`'
        )
        return Fault(text, _KEYS)
    lines = [f"\n    normalize: {home_name(side.home)}" for f, side in enumerate(site.sides) if site.gate != f]
    which = "the other side only gates, so write" if len(lines) == 1 else "write one of"
    return Fault(f"the rule does not say which of {both} is normalised; {which}:" + "".join(lines), _KEYS)


def _same_names(site: Site) -> bool:
    first, second = (set(side.home) for side in site.sides)
    return first == second


def _absent(site: Site, normalize: str | None, against: str | None) -> Fault:
    """Names of a direction that fit no way of a site; the key that is wrong is the first that fits neither side."""
    homes = [side.home for side in site.sides]
    named = [(key, name) for key, name in (("normalize", normalize), ("against", against)) if name]
    strange = [(key,) for key, name in named if not any(names_part(name, home) for home in homes)]
    said = " and ".join(f"`{key}: {name}`" for key, name in named)
    verb = "do" if len(named) > 1 else "does"
    first, second = (home_name(home) for home in homes)
    ways = [(first, second), (second, first)]
    lines = "\n  or".join(direction_lines(*way) for f, way in enumerate(ways) if site.gate != f)
    rule = "use another rule" if _same_names(site) else f"write a rule for this point with:{lines}"
    return Fault(
        f"{said} {verb} not fit what meets there ({spell_homes(homes)}); narrow the match with `between:`, or {rule}",
        (*strange, *_KEYS),
    )
