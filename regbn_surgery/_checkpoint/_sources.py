"""The functions of a recipe in the making, each of them once, and calls named by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import nn

from .._surgery import Operation
from .._surgery._classes import original_class
from .._surgery._record import FunctionText
from ._sound import is_key
from ._source import code_of, locate, named, signature_only

Key = tuple[str, str, int, int]


class Sources:
    """Numbers the functions that a recipe speaks about."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sources: list[FunctionText] = []

    def index(self, source: FunctionText) -> int:
        if source not in self.sources:
            self.sources.append(source)
        return self.sources.index(source)

    def add_forward(self, cls: type[nn.Module]) -> None:
        """The forward of a host that goes by graph."""
        if cls.__module__.split(".")[0] == "torch":
            self.index(signature_only(cls))
        else:
            file, line = code_of(cls.forward)
            self.index(named(locate(file, line), _definer(cls)))

    def relative_to_functions(self, operation: Operation) -> Operation:
        """The operation with every call of a graph named by the number of a function and the line within it."""
        if operation.graph is None:
            return operation
        owner = _definer(original_class(self.model.get_submodule(operation.host)))

        def relative(key: Key) -> Key:
            name, file, line, nth = key
            if not file:
                return key
            found = locate(file, line)
            return (name, str(self.index(named(found, owner))), line - found.first, nth)

        return replace(operation, graph=with_keys(operation.graph, relative))


def with_keys(value: Any, change: Callable[[Key], Key]) -> Any:
    """The same data with every key of a call (name, file, line, count) exchanged."""
    if isinstance(value, tuple):
        return change(value) if is_key(value) else tuple(with_keys(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: with_keys(getattr(value, field.name), change) for field in fields(value)})
    return value


def _definer(cls: type[nn.Module]) -> type:
    """The class among the bases that says what `forward` is."""
    return next(base for base in cls.__mro__ if "forward" in vars(base))
