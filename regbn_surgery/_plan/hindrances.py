"""What keeps RegBN from going where a rule wants it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._errors import RegBNOptionError
from .._rules.naming import home_name
from .._types import PlannedSite, Side, Site
from ..nn.options import RegBNOptions
from .faults import Fault

_BYTES = 4  # of one float32 of W


def obstacles(site: Site, f: int, g: int) -> list[Fault]:
    if site.obstacle is not None:
        return [Fault(f"RegBN cannot go there: {site.obstacle}; leave it out with a rule `action: skip`")]
    return [fault for side in (f, g) for fault in unknown_layout(site.sides[side], site.sides[side].anchor)]


def gate_problems(site: Site, f: int, g: int) -> list[Fault]:
    if site.obstacle is not None or site.gate != f:
        return []
    gate, other = (home_name(site.sides[side].home) for side in (f, g))
    return [
        Fault(
            f"`{gate}` only gates `{other}` there and cannot be normalised; the other way round works:"
            + direction_lines(other, gate),
            (("normalize",), ("against",)),
        )
    ]


def direction_lines(normalize: str, against: str) -> str:
    """Both keys of a direction, to be copied into the rule."""
    return f"\n    normalize: {normalize}\n    against: {against}"


def unknown_layout(side: Side, name: str, letter: str = "") -> list[Fault]:
    """`letter`: f or g of a rule's `pair`, where that names the tensor."""
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
    text = f"the {what} of {name} ({shape}, of {home_name(side.home)}) is unknown (evidence: {evidence}); {remedy}"
    return [Fault(text, (("pair", letter),) if letter else ())]


def size_problems(site: PlannedSite, stated: Mapping[str, Any]) -> list[Fault]:
    actual = {
        "f_num_channels": site.f.channels,
        "g_num_channels": site.g.channels,
        "f_layer_dim": list(site.f_layer_dim),
        "g_layer_dim": list(site.g_layer_dim),
    }
    return [
        Fault(f"`{name}` is stated as {value}, but is {actual[name]}; correct it or leave it out", (("regbn", name),))
        for name, value in stated.items()
        if value != actual[name]
    ]


def cycle_problems(pair: tuple[str, str], g_needs_f: bool, f_needs_g: bool, replace: str) -> list[Fault]:
    """A normalised tensor goes to all its readers, so what they lead to cannot take part in normalising it."""
    f, g = pair
    if g_needs_f:
        text = (
            f"`{g}` is computed from `{f}`, so the normalised `{f}` would depend on itself; name a g that does not "
            "come from f, or match the fusion point, where only the operands of the call are replaced"
        )
        return [Fault(text, (("pair", "g"),))]
    if f_needs_g and replace == "both":
        text = (
            f"`{f}` is computed from `{g}`, so the normalised `{g}` would depend on itself; `replace: f` leaves it as "
            "it is"
        )
        return [Fault(text, (("replace",), ("pair", "f")))]
    return []


def causal_problems(site: PlannedSite, allowed: bool) -> list[Fault]:
    if not site.g.causal or allowed:
        return []
    f, g = home_name(site.f.home), home_name(site.g.home)
    other = "exchange f and g of the pair" if site.pair is not None else "normalise the other way round"
    lines = "" if site.pair is not None else direction_lines(g, f)
    remedy = "write `allow_noncausal: true`" + ("" if site.f.causal else f", or {other}{':' if lines else ''}{lines}")
    return [
        Fault(
            f"g is `{g}`, a causal stream ({site.g.anchor}): what is subtracted from `{f}` would leak later positions "
            f"into earlier ones, which a decoder must not see; {remedy}",
            (("allow_noncausal",), ("against",), ("normalize",), ("pairs",), ("pair", "g")),
        )
    ]


def option_problems(site: PlannedSite) -> list[Fault]:
    try:
        options_of(site)
    except RegBNOptionError as error:
        return [Fault(str(error), tuple(_named_options(str(error))))]
    return []


def _named_options(text: str) -> list[tuple[str, ...]]:
    """The keys that a message about options names, in its order: those of the rule itself, and those of `regbn`."""
    words = re.findall(r"\w+", text)
    options = [word for word in dict.fromkeys(words) if word in RegBNOptions.names()]
    return [key for word in options for key in ((word,), ("regbn", word))]


def options_of(site: PlannedSite) -> RegBNOptions:
    return RegBNOptions(**{**site.options, "reduce": site.reduce, "replace": site.replace})


def too_large(site: PlannedSite) -> list[Fault]:
    """W above the limit of its site."""
    options = options_of(site)
    m, n = site.projection_shape
    gib = m * n * _BYTES / 2**30
    if options.projection != "dense" or gib <= options.max_dense_gib:
        return []
    size = f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 2**10:.2f} MiB"
    smaller = "" if site.reduce == "mean" else " or `reduce: mean`"
    text = (
        f"the projection would have {m} x {n} entries, {size}, above max_dense_gib={options.max_dense_gib:g}; "
        f"set `regbn: {{projection: low_rank}}`{smaller}, or raise `max_dense_gib`"
    )
    return [Fault(text, (("regbn", "max_dense_gib"), ("regbn", "projection"), ("reduce",)))]
