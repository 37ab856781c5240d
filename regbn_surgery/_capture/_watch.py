"""Notice what a module's own forward reads from and keeps on itself.

A graph bakes `self.alpha` into a constant and forgets `self.last_attention = weights`. While a host is captured its
class is exchanged for one that reports both, so that the first becomes a guard and the second a second result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from ._recorder import Recorder

_PLAIN = (int, float, bool, str)


@contextmanager
def watched(module: nn.Module, recorder: Recorder) -> Iterator[None]:
    cls: Any = type(module)

    def read(self: nn.Module, name: str) -> Any:
        value = cls.__getattribute__(self, name)
        if type(value) in _PLAIN and self is module and not name.startswith("__"):
            recorder.on_setting(name, value)
        return value

    def write(self: nn.Module, name: str, value: Any) -> None:
        cls.__setattr__(self, name, value)
        if self is module:
            recorder.on_store(name, value)

    body = {
        "__getattribute__": read,
        "__setattr__": write,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    object.__setattr__(module, "__class__", type(cls)(cls.__name__, (cls,), body))
    try:
        yield
    finally:
        object.__setattr__(module, "__class__", cls)
