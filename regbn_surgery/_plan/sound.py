"""What the types of a planned site do not say: which names, axes, sizes and options make sense in one read from a file.

Shared by plans and recipes, since both may have been written or changed by hand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from .._codec import CodecError
from .._errors import RegBNOptionError
from .._rules.problems import did_you_mean
from .._types import Layout, PlannedSite, Side
from ..nn.options import RegBNOptions

_NAME = re.compile(r"regbn_\w+", re.ASCII)
#: No axis of a tensor is longer.
_LONGEST = 2**31 - 1


def refuse_unsound(site: PlannedSite, where: str) -> None:
    """Raises CodecError, with the place, for a site that no plan can hold. `where` is the place of the site."""
    for place, text in _problems(site):
        raise CodecError(f"{where}.{place}" if place else where, text)


def module_path_problem(path: str) -> str:
    """Why a text is no path of a module; "" where it is one, which the model may still lack."""
    good = not path or all(path.split("."))
    return "" if good else f"the dotted path of a module is expected; found {path!r}"


def _problems(site: PlannedSite) -> Iterator[tuple[str, str]]:
    if (site.point is None) == (site.pair is None):
        yield "", "a site is at a `point` or at a `pair`"
    if not _NAME.fullmatch(site.name):
        yield "name", f"a name that begins with `regbn_` is expected; found {site.name!r}"
    if text := module_path_problem(site.host):
        yield "host", text
    for index, method in enumerate(site.methods):
        if not method.isidentifier():
            yield f"methods[{index}]", f"the name of a method is expected; found {method!r}"
    masked = [mask.side for mask in site.padding or ()]
    if len(set(masked)) < len(masked):
        yield "padding", "at most one mask for each side is expected"
    sides = {"f": site.f, "g": site.g}
    if site.site is not None:
        sides |= {f"site.sides[{index}]": side for index, side in enumerate(site.site.sides)}
        if site.site.gate not in (None, 0, 1):
            yield "site.gate", f"0 or 1 is expected; found {site.site.gate}"
        if site.site.role < 0:
            yield "site.role", f"a number from 0 is expected; found {site.site.role}"
    for place, side in sides.items():
        yield from ((f"{place}.{inner}", text) for inner, text in _problems_of_side(side))
    for place in "fg":
        for inner in ("batch_dim", "channel_dim"):
            if getattr(sides[place].layout, inner) is None:
                yield f"{place}.layout.{inner}", "RegBN needs this axis"
    yield from _problems_of_options(site)


def _problems_of_side(side: Side) -> Iterator[tuple[str, str]]:
    for index, size in enumerate(side.shape):
        if not 0 <= size <= _LONGEST:
            yield f"shape[{index}]", f"the length of an axis is expected; found {size}"
    if side.layout.channel_dim in range(len(side.shape)) and side.channels == 0:
        yield f"shape[{side.layout.channel_dim}]", "there are no channels"
    for inner, text in _problems_of_layout(side.layout, len(side.shape)):
        yield f"layout.{inner}", text


def _problems_of_layout(layout: Layout, rank: int) -> Iterator[tuple[str, str]]:
    taken: set[int] = set()
    axes = {"batch_dim": layout.batch_dim, "channel_dim": layout.channel_dim}
    axes |= {f"spatial_dims[{index}]": dim for index, dim in enumerate(layout.spatial_dims)}
    for place, dim in axes.items():
        if dim is None:
            continue
        if not 0 <= dim < rank:
            yield place, f"an axis of a tensor of {rank} axes is expected; found {dim}"
        elif dim in taken:
            yield place, f"axis {dim} is named twice"
        taken.add(dim)


def _problems_of_options(site: PlannedSite) -> Iterator[tuple[str, str]]:
    names = RegBNOptions.names()
    for name, value in site.options.items():
        if name not in names:
            yield "options", f"RegBN has no option {name!r}{did_you_mean(name, names)}"
            return
        if isinstance(value, float) and not math.isfinite(value):
            yield f"options.{name}", "a finite number is expected"
            return
    try:
        RegBNOptions(**{**site.options, "reduce": site.reduce, "replace": site.replace})
    except RegBNOptionError as error:
        yield "options", str(error)
