"""Which variants of a sweep are the same model under two names, so that one training serves them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from .._surgery import explain
from .._types import PlannedSite
from ..nn.options import RegBNOptions

#: What a variant does to the model, as a value: equal where two variants compute the same.
Does = tuple[tuple[object, ...], ...]


def done_by(model: nn.Module, control: bool) -> Does:
    """What was done to a rewritten model, whatever its rules are called; empty for one as it was.

    `control`: norms alone are in it (`nn.NormsOnly`). Of these only the norms count, in any order: options of the fit
    do not, nor which side is f. Without any norm such a model computes what the one as it was does.
    """
    sites = [site for host in explain(model) for site in host.sites]
    if control:
        return tuple(sorted((norm for site in sites for norm in _norms(site)), key=repr))
    return tuple(_whole(site) for site in sites)


def _place(site: PlannedSite) -> tuple[object, ...]:
    role = 0 if site.site is None else site.site.role
    return site.host, site.point, role, site.missing, site.methods


def _options(site: PlannedSite) -> RegBNOptions:
    return RegBNOptions(**{**site.options, "reduce": site.reduce, "replace": site.replace})


def _sides(site: PlannedSite) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """How each side is taken, and the sizes of its norm."""
    where = site.pair or (site.f.anchor, site.g.anchor)
    f = (where[0], site.f.home, site.f.channels, site.f_layer_dim, site.f.layout.batch_dim)
    g = (where[1], site.g.home, site.g.channels, site.g_layer_dim, site.g.layout.batch_dim)
    return f, g


def _whole(site: PlannedSite) -> tuple[object, ...]:
    return (*_place(site), _sides(site), _options(site))


def _norms(site: PlannedSite) -> Iterable[tuple[object, ...]]:
    options = _options(site)
    if not options.normalize_output:
        return
    f, g = _sides(site)
    for side in (f, g) if site.replace == "both" and (site.site is None or site.site.gate is None) else (f,):
        yield (*_place(site), side, options.affine, options.reduce)


def groups(does: Mapping[str, Does]) -> dict[str, str]:
    """For each variant the first one that does the same: itself, where there is none before it."""
    first: dict[Does, str] = {}
    return {name: first.setdefault(what, name) for name, what in does.items()}


def words_of(same: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each variant that was trained as another one; `same` holds both names."""
    return [
        f"`{name}` is the same model as `{other}`: trained once, one value stands for both." for name, other in same
    ]


__all__ = ["Does", "done_by", "groups", "words_of"]
