"""What kind of call is this? Which calls one variant of a host's forward serves, and how a call is told to people."""

from __future__ import annotations

import copy
import enum
import warnings
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .. import _tree
from .._capture._watch import attribute_token, token
from .._errors import UnseenCallError
from .._state import is_generator, is_plain_object, own_generator
from ._local import Variant

Key = tuple[Any, ...]


def own_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments for a run that nobody asked for: it may write to tensors, fill caches and count in objects."""
    memo: dict[int, Any] = {}

    def change(_: str, leaf: Any) -> Any:
        if is_generator(leaf):
            return memo.setdefault(id(leaf), own_generator(leaf))
        if hasattr(type(leaf), "__next__"):
            return memo.setdefault(id(leaf), _own_iterator(leaf))
        if isinstance(leaf, deque | np.ndarray | set):
            return memo.setdefault(id(leaf), copy.copy(leaf))
        if not is_plain_object(leaf) or isinstance(leaf, enum.Enum | PackedSequence):
            return leaf
        if id(leaf) not in memo:
            memo[id(leaf)] = clone = _tree.shallow_copy(leaf)
            for name, value in list(vars(leaf).items()):
                object.__setattr__(clone, name, _tree.cloned(_tree.rebuild(value, change)))
        return memo[id(leaf)]

    changed: tuple[tuple[Any, ...], dict[str, Any]] = _tree.cloned(_tree.rebuild((args, kwargs), change))
    return changed


def _own_iterator(iterator: Any) -> Any:
    """Another iterator that goes on from the same place.

    Raises:
        UnseenCallError: for one that can be gone through only once.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of itertools, which lose this in Python 3.14
            return copy.copy(iterator)
    except TypeError as error:
        raise UnseenCallError(
            f"The call is given a {type(iterator).__name__}, which can be gone through only once, and a new kind "
            "of call is run more than once to see that RegBN changes nothing else. Hand it on as a list."
        ) from error


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


def spelled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The arguments of a call for people. Plain loops and sums: dynamo has to be able to follow them."""
    text = ""
    for value in args:
        text += (", " if text else "") + _one_spelled(value)
    for name, value in kwargs.items():
        text += (", " if text else "") + name + "=" + _one_spelled(value)
    return text or "no arguments"


def _one_spelled(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        sizes = ""
        for size in value.shape:
            sizes += (", " if sizes else "") + str(int(size))
        return str(value.dtype)[6:] + "[" + sizes + "]"
    if isinstance(value, str):
        return "'" + value + "'"
    return str(value) if value is None or isinstance(value, bool | int | float) else type(value).__name__
