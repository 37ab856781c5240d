"""A passage as one function of the user's sees it, and the user's functions that are called on the way to a place."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Proxy

from ._table import Helper, Path

if TYPE_CHECKING:
    from ._passage import Passage


class TensorMethod:
    """A method of a tensor, with the tensor at hand: it is an operand of the call."""

    def __init__(self, receiver: Any, name: str) -> None:
        self.receiver = receiver
        self.name = name


class Here:
    """The passage as one function sees it: what it wraps is known by the way to the function, and a slot."""

    def __init__(self, passage: Passage, path: Path) -> None:
        self.passage = passage
        self.path = path

    def call(self, slot: int, func: Any, /, *args: Any, **kwargs: Any) -> Any:
        operands = (func.receiver, *args) if isinstance(func, TensorMethod) else args
        return self.passage.visit((*self.path, slot), func, func, operands, kwargs)

    def made(self, slot: int, value: Any, /) -> Any:
        self.passage.made((*self.path, slot), value)
        return value

    def unpack(self, slot: int, value: Any, /) -> Any:
        """A tensor that is taken apart along its first axis, as assignment to several names and loops do."""
        if isinstance(value, Tensor):
            value = self.passage.visit((*self.path, slot), torch.Tensor.unbind, None, (value, 0), {})
        elif isinstance(value, Proxy):  # that there are several, and which is which, its user sees
            self.passage.taken_apart((*self.path, slot), value)
        return value

    def method(self, receiver: Any, name: str, /) -> Any:
        return TensorMethod(receiver, name) if isinstance(receiver, (Tensor, Proxy)) else getattr(receiver, name)


def run(func: Any, operands: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do the user's call; of a method of a tensor, the tensor is the first operand."""
    if isinstance(func, TensorMethod):
        return getattr(operands[0], func.name)(*operands[1:], **kwargs)
    return func(*operands, **kwargs)


def run_positional(func: Any, *operands: Any, **kwargs: Any) -> Any:
    return run(func, operands, kwargs)


# -- helpers ----------------------------------------------------------------------------------------------------------


def inside(value: Any, helpers: tuple[Helper, ...], here: Here) -> Any:
    """A callable as it is, or the rewritten function in place of a helper, told where it is called from."""
    if isinstance(value, functools.partial):
        inner = inside(value.func, helpers, here)
        return value if inner is value.func else functools.partial(inner, *value.args, **value.keywords)
    if isinstance(value, Tensor):
        return value  # asked for what it lacks under dynamo, it raises an error of dynamo's (torch 2.10, 2.11)
    try:  # dynamo does not find these by `getattr` with a default
        function, receiver = value.__func__, value.__self__
    except AttributeError:
        function, receiver = value, None
    for helper in helpers:
        if function is helper.original:
            return _Bound(helper.rewritten, here, receiver)
        if helper.of_objects and getattr(type(value), "__call__", None) is helper.original:  # noqa: B004
            return _Bound(helper.rewritten, here, value)
    return value


class _Bound:
    def __init__(self, function: Any, here: Here, receiver: Any) -> None:
        self.function = function
        self.here = here
        self.receiver = receiver

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.receiver is not None:
            return self.function(self.receiver, *args, _regbn=self.here, **kwargs)
        return self.function(*args, _regbn=self.here, **kwargs)


_OF_CHECKPOINT = ("use_reentrant", "context_fn", "determinism_check", "debug", "preserve_rng_state", "early_stop")


def without_checkpoint(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `checkpoint` that are for the function in it."""
    return {name: value for name, value in kwargs.items() if name not in _OF_CHECKPOINT}
