"""From what the analysis found to a site in the host's code: every call that it names becomes a place."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .._analysis import Recipe, Take
from .._errors import RewriteError
from .._types import PlannedSite
from ._locate import Locator
from ._record import CodeSite, End, MaskArgument, Place, Stretches

Key = tuple[str, str, int, int]


@dataclass(frozen=True)
class Oriented:
    """A planned site and the recipe for it; `f` is the recipe's side that is f."""

    planned: PlannedSite
    recipe: Recipe
    f: int
    replace_g: bool
    makers: tuple[str | None, str | None]  # as seen from the host, f's first
    masks: tuple[MaskArgument, ...] = ()


def code_site(locator: Locator, member: Oriented) -> CodeSite:
    """One site of a host.

    Raises:
        RewriteError: where a call of the site stands in no Python function, so that no way leads to it.
    """
    planned, recipe = member.planned, member.recipe
    locator.reasons.clear()
    takes = recipe.takes if member.f == 0 else recipe.takes[::-1]
    layers = recipe.layers if member.f == 0 else recipe.layers[::-1]

    def place(key: Key) -> Place:
        spot = recipe.spots[key]
        found = locator.place(spot.frames, spot.op)
        if found is None:
            raise RewriteError(
                f"RegBN {planned.name!r} cannot go into {locator.cls.__name__}: its call of {spot.op} is in no Python "
                "function of the model, so RegBN cannot be inserted there. Normalise another point."
            )
        return found

    def end(take: Take, layer: Key | None, maker: str | None, given: tuple[Key, str] | None) -> End:
        if take.argument is not None:
            return End(argument=take.argument)
        if take.made is None:
            return End(at=place(take.at[0]), operand=take.at[1])
        key, output = take.made
        looped = recipe.repeats and recipe.rounds is not None and recipe.rounds.step(key[:3]) > 0
        known, turn = None, -1
        if recipe.spots[key].shared and not recipe.repeats:
            turn = recipe.spots[key].turn
            if given is not None and recipe.spots[given[0]].shared:
                return End(maker=place(key), output=output, given=(place(given[0]), given[1]))
            if layer is not None and maker is not None and recipe.spots[layer].shared:
                known = place(layer), maker
        return End(maker=place(key), output=output, layer=known, turn=turn, looped=looped)

    keys = {take.at[0] for take in takes} | {key for take in takes for key, _ in take.readers}
    scatter = recipe.scatter
    given = (None, None) if recipe.given is None else recipe.given if member.f == 0 else recipe.given[::-1]
    ends = [end(*of_side) for of_side in zip(takes, layers, member.makers, given, strict=True)]
    ends = [replace(e, passing=tuple(map(place, take.passing))) for e, take in zip(ends, takes, strict=True)]
    ends = [_with_others(locator, member, side, known) for side, known in enumerate(ends)]
    readers = [tuple(dict.fromkeys(place(key) for key, _ in take.readers)) for take in takes]
    join = place(recipe.key)
    written = () if scatter is None else tuple(place(key) for key in scatter.written)
    onward = tuple(place(key) for key in recipe.onward) if len(planned.f.shape) > 2 else ()
    reasons = list(locator.reasons)
    if any(made is not None and made.steps == join.steps for made in (ends[0].maker, ends[1].maker)):
        reasons.append(f"a side is made within the call in which the two meet ({join.op})")
    return CodeSite(
        name=planned.name,
        join=join,
        operands=keys == {recipe.key},
        f=ends[0],
        g=ends[1],
        f_readers=readers[0],
        g_readers=readers[1] if member.replace_g else (),
        replace_g=member.replace_g,
        role=recipe.role,
        masks=member.masks,
        scatter=None
        if scatter is None
        else Stretches(scatter.into, scatter.source, scatter.inplace, written, scatter.axis),
        into_is_f=member.f == 0,
        onward=onward,
        unwoven="; ".join(dict.fromkeys(reasons)),
        makers=member.makers,
        positions=(takes[0].at[1], takes[1].at[1]) if recipe.named else None,
        methods=planned.methods,
    )


def _with_others(locator: Locator, member: Oriented, side: int, known: End) -> End:
    """A side with the places that make it in other runs: in training noise may be added, or gradients be asked for."""
    recipe = member.recipe
    if known.maker is None or recipe.elsewhere is None:
        return known
    also: dict[tuple[Place, int], None] = {}
    for other in recipe.elsewhere():
        take = other.takes[side if member.f == 0 else 1 - side]
        if take.made is None or other.spots[take.made[0]].shared:
            continue
        spot = other.spots[take.made[0]]
        place = locator.place(spot.frames, spot.op)
        if place is not None and place not in known.passing and (place, take.made[1]) != (known.maker, known.output):
            also.setdefault((place, take.made[1]))
    return replace(known, also=tuple(also))
