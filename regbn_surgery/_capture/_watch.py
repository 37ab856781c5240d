"""Notice what a module's own forward reads from and keeps on itself.

A graph bakes `self.alpha` into a constant and forgets `self.last_attention = weights`. While a host is captured its
class is exchanged for one that reports both, so that the first becomes a guard and the second a second result.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._state import is_plain_object
from ._subclass import quiet_subclass

if TYPE_CHECKING:
    from ._recorder import Recorder

_PLAIN = (int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device, enum.Enum)
_MACHINERY = frozenset(nn.Module().__dict__) - {"training"}
_DEPTH = 3
#: Objects with more fields than this (the configuration of a whole model family) are known by identity alone.
_MANY = 32


def token(value: Any, depth: int = 0) -> Any:
    """What must stay the same about an attribute for a graph to hold: the value of a plain one, the kind of a tensor,
    the content of a container, the identity of anything else."""
    if isinstance(value, _PLAIN):
        return (type(value).__name__, value)
    if isinstance(value, torch.Tensor):
        # An attribute is read anew at each call; a tensor in a list is a constant of the graph.
        return ("tensor", value.dim(), value.dtype) if depth == 0 else ("object", id(value))
    if type(value) in (list, tuple, set, frozenset) and depth < _DEPTH:
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return (type(value).__name__, tuple(token(item, depth + 1) for item in items))
    if type(value) is dict and depth < _DEPTH:
        return ("dict", tuple((repr(key), token(item, depth + 1)) for key, item in value.items()))
    if is_plain_object(value) and depth < _DEPTH - 1 and len(vars(value)) <= _MANY:
        return ("fields", id(value), tuple((key, token(item, depth + 1)) for key, item in vars(value).items()))
    return ("object", id(value))


@contextmanager
def watched(module: nn.Module, recorder: Recorder) -> Iterator[None]:
    cls: Any = type(module)

    def read(self: nn.Module, name: str) -> Any:
        value = cls.__getattribute__(self, name)
        if self is module and name not in _MACHINERY and not name.startswith("__"):
            held = cls.__getattribute__(self, "__dict__")
            # Class attributes that are plain may be overlaid on the instance at any time; methods are none of ours.
            if name in held or isinstance(value, _PLAIN):
                recorder.on_setting(name, token(value))
        return value

    def write(self: nn.Module, name: str, value: Any) -> None:
        cls.__setattr__(self, name, value)
        if self is module:
            recorder.on_store(name, value)

    body = {"__getattribute__": read, "__setattr__": write}
    object.__setattr__(module, "__class__", quiet_subclass(cls, body))
    try:
        yield
    finally:
        object.__setattr__(module, "__class__", cls)
        for name, before in recorder.settings.items():
            if name not in recorder.stores and token(getattr(module, name, None)) != before:
                recorder.mutated.append(name)
