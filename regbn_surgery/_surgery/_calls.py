"""What kind of call is this? Which calls one variant of a host's forward serves, and how a call is told to people."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .. import _tree
from .._trace._watch import attribute_token, token
from ._local import Variant

Key = tuple[Any, ...]


class Known:
    """A variant, the sizes of the arguments it was captured at, and those found not to matter.

    A size is believed not to matter when captures at several values of it, far enough apart, gave the same code: the
    batch sizes 2 and 3 may well go the same way where 50 goes another. Where Python compared or counted a size, that
    is never believed.
    """

    def __init__(self, variant: Variant, sizes: tuple[int, ...], kept: tuple[Any, ...] = ()) -> None:
        self.variant = variant
        self.kept = kept  # alive, so that no other object gets the id of one that the variant was captured with
        self.seen: list[set[int]] = [{size} for size in sizes]
        self.exact = {sizes}

    def see(self, sizes: tuple[int, ...]) -> None:
        self.exact.add(sizes)
        for values, size in zip(self.seen, sizes, strict=True):
            values.add(size)

    def fits(self, host: nn.Module, sizes: tuple[int, ...]) -> bool:
        if any(attribute_token(host, name) != value for name, value in self.variant.settings):
            return False
        if self.variant.leaks:
            return sizes in self.exact
        return all(
            is_symbolic(size) or size in seen or is_free(seen) for seen, size in zip(self.seen, sizes, strict=True)
        )


def is_symbolic(size: object) -> bool:
    """Whether a size stands for any, in an export with dynamic shapes: to ask for its value would pin it down."""
    return isinstance(size, torch.SymInt)


def is_free(seen: set[int]) -> bool:
    return len(seen) >= 6 or (len(seen) >= 3 and max(seen) >= 4 * min(seen))


def key_of(host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
    """What kind of call this is; `host(x, x)` is another kind than `host(x, y)`."""
    tensors = _tree.tensors((args, kwargs))
    identities = [id(tensor) for tensor in tensors]
    same = tuple(identities.index(identity) for identity in identities)
    grad = torch.is_grad_enabled() and tuple(tensor.requires_grad for tensor in tensors)
    modes = tuple(module.training for module in host.modules())
    return (role, host.training, _signature(args), _signature(kwargs), same, grad, modes)


def kind_of(key: Key) -> Key:
    """The key with numbers and objects left out: a step counter, an annealed weight or a growing cache gives a new key
    at every call."""
    return tuple(_without_numbers(part) for part in key)


def _without_numbers(value: Any) -> Any:
    if type(value) is not tuple:
        return value
    if len(value) == 2 and value[0] in (int, float):
        return value[0]
    if value[:1] in (("fields",), ("object",)):
        return value[0]
    return tuple(_without_numbers(item) for item in value)


def _signature(value: Any, depth: int = 0) -> Any:
    """What decides which way a forward goes: structure, `None`s, flags and numbers; of tensors the rank and kind."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dim(), value.dtype)
    if value is None or isinstance(value, bool | int | float | str):
        return (type(value), value)
    children = _tree.items(value) if depth < _tree.MAX_DEPTH else None
    if children is None:
        return token(value)
    return (type(value), tuple((key, _signature(child, depth + 1)) for key, child in children))


def sizes_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    return tuple(size for tensor in _tree.tensors((args, kwargs)) for size in tensor.shape)
