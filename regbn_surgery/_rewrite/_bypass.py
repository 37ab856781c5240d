"""A call of a host that does not come by any of its sites: nothing meets in it, or it goes on from where it met."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from .. import _tree
from .._errors import RegBNBypassedError, RegBNWarning
from ._calls import spelled
from ._local import LocalSite

_CACHES = ("past_key_value", "cache_params", "kv_cache")


def continues_from_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call goes on where an earlier one has filled a cache (asked before the call fills it further)."""
    return any(_is_filled(value, str(name)) for name, value in (*enumerate(args), *kwargs.items()))


def _is_filled(value: Any, name: str) -> bool:
    ask = getattr(value, "get_seq_length", None)
    if ask is not None and not isinstance(value, nn.Module):
        return int(ask()) > 0
    held = _tree.tensors(value) if any(word in name for word in _CACHES) else []
    return any(tensor.numel() > 0 for tensor in held if isinstance(tensor, torch.Tensor))


def tell_passed_by(
    host: nn.Module,
    path: str,
    sites: tuple[LocalSite, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    continued: bool,
) -> None:
    """Warn of a call in which nothing meets.

    Raises:
        RegBNBypassedError: where it goes on from a cache: the tokens before went through RegBN, these did not.
    """
    what = f"{type(host).__name__} at `{path}` was called ({spelled(args, kwargs)})"
    names = ", ".join(site.name for site in sites)
    if continued:
        raise RegBNBypassedError(
            f"{what} to go on from a cache, without the modality that its RegBN sites ({names}) need: the new tokens "
            "would be left as they are, unlike those before them, and unlike the same tokens without a cache. Call "
            "generate(..., use_cache=False), so that every step sees both."
        )
    warnings.warn(
        f"{what} without coming by any of its RegBN sites ({names}); this call runs as it always did",
        RegBNWarning,
        stacklevel=3,
    )
