"""The arguments of a call: copies for a trial run, and in words for people."""

from __future__ import annotations

import copy
import enum
import warnings
from collections import deque
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from .. import _tree
from .._errors import UnseenCallError
from .._state import is_generator, is_plain_object, own_generator


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
            f"The call was given a {type(iterator).__name__}, which can be iterated only once, but a new kind of call "
            "is run several times for the self-check. Pass a list instead."
        ) from error


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
