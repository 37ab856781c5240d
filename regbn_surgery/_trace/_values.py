"""Sizes that remember where they came from.

`x.shape` gives ordinary integers, so a graph would be valid for one batch size only. These integers are real ones to
the user's code, and carry the graph node that computes them to ours.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx


class TracedInt(int):
    """An `int` that knows the fx node that computes it. Copies and pickles as a plain `int`.

    Most sizes are looked at and dropped, so the node is made when first asked for.
    """

    recorder: Any
    _make: Callable[[], torch.fx.Node]
    _node: torch.fx.Node | None

    def __new__(cls, value: int, make: Callable[[], torch.fx.Node], recorder: Any) -> TracedInt:
        self = super().__new__(cls, value)
        self.recorder = recorder
        self._make = make
        self._node = None
        return self

    @property
    def node(self) -> torch.fx.Node:
        if self._node is None:
            self._node = self._make()
        return self._node

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)

    def __copy__(self) -> int:
        return int(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return (int, (int(self),))

    def __neg__(self) -> int:
        negative: int = _arithmetic(operator.neg, int.__neg__(self), (self,))
        return negative


def _leaking(name: str) -> Callable[..., Any]:
    """A method of `int` that takes the size out of the graph: what is decided or computed by it holds for it only."""
    original = getattr(int, name)

    def method(self: TracedInt, *others: Any) -> Any:
        if self.recorder.recording:
            self.recorder.on_leak()
        return original(self, *others)

    return method


def _arithmetic(op: Callable[..., Any], value: Any, operands: tuple[Any, ...]) -> Any:
    traced = next(x for x in operands if isinstance(x, TracedInt))
    if type(value) is not int or not traced.recorder.recording:
        return value
    return TracedInt(value, lambda: traced.recorder.number(op, operands), traced.recorder)


def _binary(name: str) -> tuple[Callable[[TracedInt, Any], Any], Callable[[TracedInt, Any], Any]]:
    op = getattr(operator, name)

    def forward(self: TracedInt, other: Any) -> Any:
        # Floats leave the traced world: what is computed from them is a constant that the self-check questions.
        if not isinstance(other, int):
            return getattr(int, f"__{name}__")(self, other) if not isinstance(other, float) else op(int(self), other)
        return _arithmetic(op, op(int(self), int(other)), (self, other))

    def backward(self: TracedInt, other: Any) -> Any:
        if not isinstance(other, int):
            return getattr(int, f"__r{name}__")(self, other) if not isinstance(other, float) else op(other, int(self))
        return _arithmetic(op, op(int(other), int(self)), (other, self))

    return forward, backward


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    _forward, _backward = _binary(_name)
    setattr(TracedInt, f"__{_name}__", _forward)
    setattr(TracedInt, f"__r{_name}__", _backward)


for _name in (
    "__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__", "__bool__", "__truediv__", "__rtruediv__", "__pow__",
    "__rpow__", "__lshift__", "__rshift__", "__and__", "__or__", "__xor__", "__float__", "__round__", "__trunc__",
    "__divmod__", "__rdivmod__", "__format__", "__str__", "__repr__", "__ceil__", "__floor__",
):  # fmt: skip
    setattr(TracedInt, _name, _leaking(_name))
TracedInt.__hash__ = int.__hash__  # type: ignore[method-assign]


def plain(value: Any) -> Any:
    """The same value with plain integers, for calls into torch; the very object where it holds none of ours, since
    whom it is given to may write into it."""
    if type(value) is TracedInt:
        return int(value)
    if type(value) is tuple or type(value) is list:
        items = [plain(item) for item in value]
        return value if all(map(operator.is_, items, value)) else type(value)(items)
    if type(value) is torch.Size:
        return torch.Size(int(item) for item in value)
    if type(value) is dict:
        entries = {key: plain(item) for key, item in value.items()}
        return value if all(entries[key] is item for key, item in value.items()) else entries
    if type(value) is slice:
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    return value
