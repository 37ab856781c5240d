"""A call of a host that does not come by any of its sites: nothing meets in it, or it goes on from where it met."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .. import _tree
from .._errors import RegBNBypassedError, RegBNWarning
from ._calls import spelled
from ._local import LocalSite

_LEGACY = ("past_key_value", "cache_params", "kv_cache")
#: Caches that a call which came by a site has filled, as long as they live.
_met: Any = WeakIdKeyDictionary()


def remember_caches(*values: Any) -> None:
    """The caches among the arguments and outputs of a call that came by its sites hold what RegBN had a part in."""
    for cache in caches_in(values):
        _met[cache] = True


def caches_in(value: Any) -> Iterator[Any]:
    """The key-value caches in arguments or outputs."""
    for _, leaf in _tree.leaves(value):
        if callable(getattr(leaf, "get_seq_length", None)) and not isinstance(leaf, nn.Module):
            yield leaf


def goes_on(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call goes on from a cache that a call by the sites has filled. Tuples of tensors, as old models have
    for caches, are new at each step, so that any of them is taken for one."""
    if any(cache in _met for cache in caches_in((args, kwargs))):
        return True
    old = [value for name, value in kwargs.items() if any(word in name for word in _LEGACY)]
    return any(isinstance(tensor, Tensor) and tensor.numel() > 0 for tensor in _tree.tensors(old))


def tell_passed_by(
    host: nn.Module, path: str, sites: tuple[LocalSite, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Warn of a call in which nothing meets.

    Raises:
        RegBNBypassedError: as `refuse_going_on`.
    """
    refuse_going_on(host, path, sites, args, kwargs)
    warnings.warn(
        f"{_what(host, path, args, kwargs)} without coming by any of its RegBN sites ({_names(sites)}); "
        "this call runs as it always did",
        RegBNWarning,
        stacklevel=3,
    )


class Named(Protocol):
    """What is told of a site."""

    @property
    def name(self) -> str: ...


def refuse_going_on(
    host: nn.Module, path: str, sites: Sequence[Named], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raises RegBNBypassedError where a call in which nothing meets goes on from a cache: the tokens before went
    through RegBN, these would not."""
    if goes_on(args, kwargs):
        raise RegBNBypassedError(
            f"{_what(host, path, args, kwargs)} to go on from a cache, without the modality that its RegBN sites "
            f"({_names(sites)}) need: the new tokens would be left as they are, unlike those before them, and unlike "
            "the same tokens without a cache. Call generate(..., use_cache=False), so that every step sees both."
        )


def _what(host: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return f"{type(host).__name__} at `{path}` was called ({spelled(args, kwargs)})"


def _names(sites: Sequence[Named]) -> str:
    return ", ".join(site.name for site in sites)
