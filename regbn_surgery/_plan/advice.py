"""What is worth a word although nothing stands in the way: notes drawn from the method's own guidance."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from .._codes import coded
from .._rules.naming import home_name
from .._rules.problems import listing
from .._types import FusionPoint, HostArgument, PlannedSite
from ..nn.options import RegBNOptions
from ..nn.start import too_few
from .facts import Facts, SiteMasks
from .padding import LETTERS, Letter, candidates, rows

_BYTES = 4  # of one float32 of W
_LARGE = 256 * 2**20  # bytes of one W that are worth a word


def advise(
    sites: Sequence[PlannedSite],
    points: Mapping[str, FusionPoint],
    facts: Facts,
    counted: Collection[tuple[str, str]] = (),
) -> Iterator[str]:
    """All notes on the planned sites, the gravest first. `counted`: sides (path of a RegBN, "f" or "g") whose padding
    is to count."""
    yield from _rescaled(sites, facts)
    yield from _causal(sites)
    yield from _short(sites, facts)
    yield from _similarities(sites, points)
    yield from _mixed(sites, points)
    yield from _beside(sites, points, facts)
    yield from _repeated(sites)
    yield from _doubled(sites)
    yield from (text for loud, text in _padded(sites, facts, counted) if not loud)
    yield from _underdetermined(sites, facts)
    yield from _large(sites)


def counted_padding(
    sites: Sequence[PlannedSite], facts: Facts, counted: Collection[tuple[str, str]] = ()
) -> Iterator[str]:
    """Warnings where the example itself has padding that RegBN counts. `counted` as for `advise`."""
    yield from (text for loud, text in _padded(sites, facts, counted) if loud)


def _named(sites: Iterable[PlannedSite]) -> str:
    return listing((site.path for site in sites), limit=6)


def _rescaled(sites: Sequence[PlannedSite], facts: Facts) -> Iterator[str]:
    if not any(site.options.get("normalize_output", True) for site in sites):
        return
    if facts.trained is not None:
        start = f"the weights look trained ({facts.trained}), and the output norms rescale f and g even while W is 0"
    elif not facts.weights_seen:
        start = "the output norms rescale f and g even while W is 0: in a pretrained model"
    else:
        return
    joint = ":" if facts.trained is not None else ""
    yield coded(
        "RB107",
        f"{start}{joint} set `regbn: {{normalize_output: false}}`, which leaves evaluation unchanged until the first "
        "training step",
    )


def _causal(sites: Sequence[PlannedSite]) -> Iterator[str]:
    pooled = [site for site in sites if site.f.causal and site.options.get("fit") == "batch"]
    if pooled:
        yield coded(
            "RB108",
            f"f is a causal stream and is fitted on its own batch at {_named(pooled)}: in training each position "
            "sees what comes after it; leave `fit` at `running`",
        )
    running = [site for site in sites if site.f.causal and site.options.get("fit") == "running"]
    if running:
        yield coded(
            "RB109",
            f"f is a causal stream at {_named(running)}: `fit: running` subtracts with the projection from before the "
            "step, so that no position sees what comes after it",
        )
    flat = [site for site in running if site.reduce == "flatten" and site.options.get("normalize_output", True)]
    if flat:
        yield coded(
            "RB110",
            f"f is a causal stream at {_named(flat)}, and with `reduce: flatten` the output norms run over its "
            "positions, so that each sees what comes after it; set `reduce: mean` or `normalize_output: false`",
        )
    seen = [site for site in sites if site.g.causal]
    if seen:
        yield coded(
            "RB111",
            f"g is a causal stream at {_named(seen)} (`allow_noncausal`): what is subtracted from f depends on all "
            "of its positions, so what is predicted at one from f sees the later ones",
        )


def _short(sites: Sequence[PlannedSite], facts: Facts) -> Iterator[str]:
    if facts.steps is None:
        return
    by_momentum: dict[float, list[PlannedSite]] = {}
    for site in sites:
        if not site.options.get("correct_start", False):
            by_momentum.setdefault(float(site.options.get("momentum", RegBNOptions.momentum)), []).append(site)
    for momentum, members in by_momentum.items():
        told = too_few(facts.steps, momentum)
        if told is not None:
            yield coded("RB112", f"{told} ({_named(members)})")


def _similarities(sites: Sequence[PlannedSite], points: Mapping[str, FusionPoint]) -> Iterator[str]:
    named = {name for name, point in points.items() if point.kind == "similarity"}
    heads = [site for site in sites if site.point in named]
    if heads:
        yield coded(
            "RB113",
            f"a similarity head is normalised ({_named(heads)}): RegBN removes what one side tells about the other, "
            "which is what such a head measures; f and g need the same batch, sample by sample",
        )


def _mixed(sites: Sequence[PlannedSite], points: Mapping[str, FusionPoint]) -> Iterator[str]:
    """g has taken up f on its way, as the queries of an attention do: it predicts f by what is f's own."""
    members: dict[tuple[tuple[str, ...], tuple[str, ...]], list[PlannedSite]] = {}
    for site in sites:
        point = points.get(site.point or "")
        operands = () if point is None else point.operands
        seen = {name for operand in operands if operand.home == site.g.home for name in operand.modalities}
        if seen.intersection(site.f.home) and not set(site.g.home).intersection(site.f.home):
            members.setdefault((site.f.home, site.g.home), []).append(site)
    for (f, g), several in members.items():
        yield coded(
            "RB125",
            f"{home_name(g)} has already taken up {home_name(f)} where it meets it at {_named(several)}: it predicts "
            f"{home_name(f)} by that, too, and RegBN removes what is its own. To use {home_name(g)} from before, name "
            "the layer that makes it: `pair: {f: ..., g: module:...}`",
        )


def _beside(sites: Sequence[PlannedSite], points: Mapping[str, FusionPoint], facts: Facts) -> Iterator[str]:
    """A residual connection adds the stream as it was to what the attention made of f'."""
    members: dict[tuple[str, ...], list[PlannedSite]] = {}
    named: dict[tuple[str, ...], str] = {}
    for site in sites:
        point = points.get(site.point or "")
        if point is None or site.site is None:
            continue
        index = next((i for i, each in enumerate(point.sites) if each == site.site), 0)
        beside = facts.beside.get((point.id, index))
        changed = (site.f, site.g) if site.replace == "both" else (site.f,)
        if beside is not None and any(side.home == beside.home for side in changed):
            members.setdefault(beside.home, []).append(site)
            if beside.home not in named and site.f.home == beside.home:
                pair = beside.pair(1 if site.f == site.site.sides[0] else 0)
                named[beside.home] = "" if pair is None else f"{{f: {pair[0]}, g: {pair[1]}}}"
    for home, several in members.items():
        pair_text = named.get(home) or "{f: module:..., g: module:...}"
        yield coded(
            "RB126",
            f"a residual connection adds {home_name(home)} as it was to the result of the attention at "
            f"{_named(several)}: RegBN changes what the attention reads, and not that. To "
            f"normalise {home_name(home)} for all that follows, name the layers that make both sides: `pair: "
            f"{pair_text}, replace: f`",
        )


def _repeated(sites: Sequence[PlannedSite]) -> Iterator[str]:
    places: dict[tuple[tuple[str, ...], tuple[str, ...]], set[str]] = {}
    for site in sites:
        places.setdefault((site.f.home, site.g.home), set()).add(site.point or "the pair " + " ".join(site.pair or ()))
    for (f, g), points in places.items():
        if len(points) > 1:
            yield coded(
                "RB114",
                f"{home_name(f)} is normalised against {home_name(g)} at {len(points)} points in one forward, "
                "each with a projection of its own; make sure that all of them are wanted",
            )


def _doubled(sites: Sequence[PlannedSite]) -> Iterator[str]:
    """At one point, several operands of one modality: RegBN goes in for each, one behind the other."""
    members: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[PlannedSite]] = {}
    for site in sites:
        if site.point is not None:
            members.setdefault((site.point, site.f.home, site.g.home), []).append(site)
    for (point, f, g), several in members.items():
        if len(several) > 1:
            yield coded(
                "RB119",
                f"{point} has several operands of {home_name(f)} or {home_name(g)}, so {len(several)} RegBN go in "
                f"there, one after the other ({_named(several)}). To take one pair of operands, name the layers that "
                "make them: `pair: {f: ..., g: ...}` in place of `match`",
            )


def _padded(
    sites: Sequence[PlannedSite], facts: Facts, counted: Collection[tuple[str, str]]
) -> Iterator[tuple[bool, str]]:
    """Sides that are averaged over positions, of which a mask tells the padding that RegBN is not told.

    In front of each note, whether the example has such padding.
    """
    found: dict[tuple[tuple[str, ...], Letter, str, str, bool], list[PlannedSite]] = {}
    for site in sites:
        masks = None if facts.masks_at is None else facts.masks_at(site)
        masked = {mask.side for mask in site.padding or ()}
        for letter in LETTERS if site.reduce == "mean" and masks is not None else ():
            assert masks is not None, "asked above"
            side = site.f if letter == "f" else site.g
            if letter in masked or (site.path, letter) in counted or _has_no_padding(masks, letter):
                continue
            given = candidates(masks, side, letter)
            inputs = tuple(name for name, shape in facts.masks.items() if shape == rows(side))
            names = inputs or tuple(argument.name for argument in given)
            if names:
                remedy = _remedy(masks, given, home_name(side.home))
                loud = not facts.padded.isdisjoint((*inputs, *(name for one in given for name in one.inputs)))
                found.setdefault((names, letter, home_name(side.home), remedy, loud), []).append(site)
    for (names, letter, home, remedy, loud), members in found.items():
        marks = " and ".join(f"`{name}`" for name in names) + (" marks" if len(names) == 1 else " mark")
        text = coded(
            "RB123",
            f"padding counts in the mean: {marks} positions of {letter} ({home}), and RegBN averages over all of them "
            f"at {_named(members)}. {remedy}",
        )
        yield loud, text


def _has_no_padding(masks: SiteMasks, letter: Letter) -> bool:
    """What a scatter writes has none: its rows go where the call puts them."""
    return not masks.open[LETTERS.index(letter)] and any(masks.open)


def _remedy(masks: SiteMasks, given: Sequence[HostArgument], home: str) -> str:
    """What leaves padding out: the key of a rule, where the host is given a mask."""
    if not given:
        return (
            f"{masks.host.split()[0]}, in which they meet, is not given it in the example. If your batches are padded, "
            f"hand it the mask and name it in the rule (`mask: {{{home}: ...}}`), batch by length, or normalise a "
            "point at which the positions are pooled already"
        )
    name = given[0].name
    if masks.meaning(given[0]) is None:
        named = f"`mask: {{{home}: {{argument: {name}, marks: content}}}}` in the rule, or `padding` for `content`"
    else:
        named = f"`mask: {{{home}: {name}}}` in the rule"
    return f"To leave padding out, write {named}; `mask: none` if your batches have none"


def _underdetermined(sites: Sequence[PlannedSite], facts: Facts) -> Iterator[str]:
    if facts.batch is None:
        return
    wide = [site for site in sites if site.projection_shape[0] > facts.batch]
    if wide:
        sizes = ", ".join(f"{site.projection_shape[0]} features of g at {site.path}" for site in wide[:6])
        more = f" and {len(wide) - 6} more" if len(wide) > 6 else ""
        remedy = "`reduce: mean` needs fewer samples"
        if not any(site.reduce == "flatten" and site.g_layer_dim for site in wide):
            remedy = "larger batches help"
        yield coded(
            "RB115",
            f"with the {facts.batch} samples of the example one batch does not determine W ({sizes}{more}). Ignore "
            f"this if you train with larger batches than g has features; else {remedy}",
        )


def _large(sites: Sequence[PlannedSite]) -> Iterator[str]:
    for site in sites:
        m, n = site.projection_shape
        if site.options.get("projection", "dense") == "dense" and m * n * _BYTES > _LARGE:
            smaller = "" if site.reduce == "mean" else " or `reduce: mean`"
            yield coded(
                "RB116",
                f"W of {site.path} is {m}×{n}, {m * n * _BYTES / 2**20:,.0f} MiB in memory and in every "
                f"checkpoint; `regbn: {{projection: low_rank}}`{smaller} makes it small",
            )
