"""A call of a host that does not come by its sites: nothing meets in it, or it goes on from where it met."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from .. import _tree
from .._errors import RegBNBypassedError
from ._arguments import spelled
from ._changed import named_at
from ._compiling import outside_graphs
from ._memory import Met, caches_in, has_caches, recollect, remember
from ._site import site_at

_LEGACY = ("past_key_value", "cache_params", "kv_cache")


class Named(Protocol):
    """What is told of a site."""

    @property
    def name(self) -> str: ...


@outside_graphs
def remember_caches(host: nn.Module, ran: Iterable[str], lasting: Collection[str], *values: Any) -> None:
    """The caches among the arguments and outputs of a call hold what RegBN had a part in. By site's name: those that
    `ran`, and those after which f may follow alone."""
    if not has_caches(*values):
        return
    tokens = {name: site_at(host, name).token for name in ran}
    remember(tokens.values(), [tokens[name] for name in lasting], *values)


@outside_graphs
def remembered(
    host: nn.Module, sites: Iterable[Named], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Met]:
    """By name, the sites that have met in what the caches of a call hold."""
    return recollect(host, (site.name for site in sites), args, kwargs)


def refuse_going_on(
    host: nn.Module,
    path: str,
    sites: Sequence[Named],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    why: str = "",
) -> None:
    """Raises RegBNBypassedError where a call in which nothing meets goes on from a cache: the tokens before went
    through RegBN, these would not. Tuples of tensors, as old models have for caches, are new at each step, so that any
    of them is taken for one that RegBN had a part in."""
    passed_by = remembered(host, sites, args, kwargs)
    if passed_by or has_tuples_for_cache(kwargs):
        names = ", ".join(passed_by) or _names(sites)
        raise RegBNBypassedError(
            f"{_what(host, path, args, kwargs)} to continue from a cache, without the modality that its RegBN sites "
            f"({names}) need: the new tokens would not be normalised, unlike the earlier ones and unlike the same "
            f"tokens without a cache{' (' + why + ')' if why else ''}. Call generate(..., use_cache=False), so that "
            "every step has both modalities."
        )


@outside_graphs
def refuse_unknown_caches(
    host: nn.Module, path: str, sites: Sequence[Named], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """For compiled calls: what a compiled call has put into a cache nobody has seen.

    Raises:
        RegBNBypassedError: where a call in which nothing meets goes on from any cache that holds something.
    """
    if has_tuples_for_cache(kwargs) or any(int(cache.get_seq_length()) > 0 for cache in caches_in((args, kwargs))):
        raise RegBNBypassedError(
            f"{_what(host, path, args, kwargs)} in a compiled model, to continue from a cache, without the modality "
            f"that its RegBN sites ({_names(sites)}) need. RegBN can read that modality from the cache only outside "
            "compiled graphs: generate with the uncompiled model, or with use_cache=False."
        )


def has_tuples_for_cache(kwargs: dict[str, Any]) -> bool:
    """Whether a call goes on from keys and values in tuples, as old models have them."""
    old = [value for name, value in kwargs.items() if any(word in name for word in _LEGACY)]
    tuples = [value for value in old if not has_caches(value)]
    return any(isinstance(tensor, Tensor) and tensor.numel() > 0 for tensor in _tree.tensors(tuples))


def _what(host: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return f"{named_at(type(host), path)} was called ({spelled(args, kwargs)})"


def _names(sites: Sequence[Named]) -> str:
    return ", ".join(site.name for site in sites)
