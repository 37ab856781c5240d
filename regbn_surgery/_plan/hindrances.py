"""What keeps RegBN from going where a rule wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._errors import RegBNOptionError
from .._rules.matching import spell_homes
from .._rules.naming import home_name
from .._types import PlannedSite, Side, Site
from ..nn.options import RegBNOptions

_BYTES = 4  # of one float32 of W


def obstacles(site: Site, f: int, g: int) -> list[str]:
    if site.obstacle is not None:
        return [f"RegBN cannot go there: {site.obstacle}; leave it out with a rule `action: skip`"]
    return [text for side in (f, g) for text in unknown_layout(site.sides[side], site.sides[side].anchor)]


def gate_problems(site: Site, f: int, g: int) -> list[str]:
    if site.obstacle is not None or site.gate != f:
        return []
    gate, other = (spell_homes([site.sides[side].home]) for side in (f, g))
    return [
        f"`{gate}` only gates `{other}` there and cannot be normalised; the other way round works: "
        f"`normalize: {site.sides[g].home[0]}`"
    ]


def unknown_layout(side: Side, name: str) -> list[str]:
    layout = side.layout
    if layout.known:
        return []
    evidence = "; ".join(layout.evidence) or "none"
    shape = "×".join(str(size) for size in side.shape)
    if layout.batch_dim is None:
        what = "batch axis"
        remedy = (
            "give `example_inputs` as a function of the batch size, so that the axis that changes with it is found, "
            "or write `samples: rows` if each row is a sample"
        )
    else:
        what = "channel axis"
        remedy = "no parametrised operation before it shows which axis holds channels; name another pair of points"
    return [f"the {what} of {name} ({shape}, of {home_name(side.home)}) is unknown (evidence: {evidence}); {remedy}"]


def size_problems(site: PlannedSite, stated: Mapping[str, Any]) -> list[str]:
    actual = {
        "f_num_channels": site.f.channels,
        "g_num_channels": site.g.channels,
        "f_layer_dim": list(site.f_layer_dim),
        "g_layer_dim": list(site.g_layer_dim),
    }
    return [
        f"`{name}` is stated as {value}, but is {actual[name]}"
        for name, value in stated.items()
        if value != actual[name]
    ]


def cycle_problems(pair: tuple[str, str], g_needs_f: bool, f_needs_g: bool, replace: str) -> list[str]:
    """A normalised tensor goes to all its readers, so what they lead to cannot take part in normalising it."""
    f, g = pair
    if g_needs_f:
        return [
            f"`{g}` is computed from `{f}`, so the normalised `{f}` would depend on itself; name a g that does not "
            "come from f, or match the fusion point, where only the operands of the call are replaced"
        ]
    if f_needs_g and replace == "both":
        return [
            f"`{f}` is computed from `{g}`, so the normalised `{g}` would depend on itself; `replace: f` leaves it as "
            "it is"
        ]
    return []


def causal_problems(site: PlannedSite, allowed: bool) -> list[str]:
    if not site.g.causal or allowed:
        return []
    f, g = spell_homes([site.f.home]), spell_homes([site.g.home])
    other = "" if site.f.causal else f"; normalise `{g}` against `{f}` instead"
    return [
        f"g is `{g}`, a causal stream ({site.g.anchor}): what is subtracted from `{f}` would leak later positions into "
        f"earlier ones, which a decoder must not see{other}, or write `allow_noncausal: true`"
    ]


def option_problems(site: PlannedSite) -> list[str]:
    try:
        options_of(site)
    except RegBNOptionError as error:
        return [str(error)]
    return []


def options_of(site: PlannedSite) -> RegBNOptions:
    return RegBNOptions(**{**site.options, "reduce": site.reduce, "replace": site.replace})


def too_large(site: PlannedSite) -> list[str]:
    """W above the limit of its site."""
    options = options_of(site)
    m, n = site.projection_shape
    gib = m * n * _BYTES / 2**30
    if options.projection != "dense" or gib <= options.max_dense_gib:
        return []
    size = f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 2**10:.2f} MiB"
    smaller = "" if site.reduce == "mean" else " or `reduce: mean`"
    return [
        f"the projection would have {m} x {n} entries, {size}, above max_dense_gib={options.max_dense_gib:g}; "
        f"set `regbn: {{projection: low_rank}}`{smaller}, or raise `max_dense_gib`"
    ]
