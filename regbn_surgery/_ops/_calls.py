"""What a call of a torch function is: its name, whether it is a method, a property, in place, or silent."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from ._table import canonical, operation

#: `a + b` for `a.add(b)`. Rows that take their operands in the other order come second.
_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "matmul": operator.matmul,
    "getitem": operator.getitem, "bitwise_and": operator.and_, "bitwise_or": operator.or_, "eq": operator.eq,
    "ne": operator.ne, "lt": operator.lt, "gt": operator.gt, "le": operator.le, "ge": operator.ge,
    "pow": operator.pow, "floor_divide": operator.floordiv,
}  # fmt: skip
_REVERSED: dict[str, Callable[..., Any]] = {
    "rsub": operator.sub, "rdiv": operator.truediv, "rpow": operator.pow, "rmatmul": operator.matmul,
}  # fmt: skip
_UNARY: dict[str, Callable[..., Any]] = {"neg": operator.neg, "bitwise_not": operator.invert}
#: Methods of these names are not what the operator of their row does.
_NO_OPERATOR = frozenset({"floor_divide", "bitwise_and", "bitwise_or", "bitwise_not"})

#: `Tensor.__pow__` and its like go by the name of another function, which is not the same object.
_RENAMED = frozenset({torch.Tensor.__pow__, torch.Tensor.__ipow__, torch.Tensor.__itruediv__, torch.Tensor.__rtruediv__,
                      torch.Tensor.__abs__, torch.Tensor.__neg__, torch.Tensor.__pos__})  # fmt: skip


def name_of(func: Any) -> str:
    """The function's own name, as one spelling of its operation; for a property of a tensor (`x.T`), the property's."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        owner = getattr(func, "__self__", None)
        return str(getattr(owner, "__name__", name))
    return str(name)


def is_property(func: Any) -> bool:
    return getattr(func, "__name__", "") == "__get__"


def is_property_write(func: Any) -> bool:
    return getattr(func, "__name__", "") == "__set__"


def is_method(func: Any) -> bool:
    return func in _RENAMED or getattr(torch.Tensor, getattr(func, "__name__", ""), None) is func


def is_inplace(spelling: str, kwargs: dict[str, Any]) -> bool:
    """Whether the call writes into an operand: trailing underscore, augmented assignment, `out=`, `inplace=True`."""
    if spelling == "__setitem__" or kwargs.get("out") is not None or kwargs.get("inplace") is True:
        return True
    if spelling.startswith("__i") and spelling.endswith("__"):
        return spelling not in ("__invert__", "__index__", "__int__")
    return spelling.endswith("_") and not spelling.endswith("__")


def as_operator(
    spelling: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """`a + b` instead of `a.add(b)`: the captured code is read by people."""
    name = canonical(spelling)
    if kwargs or is_inplace(spelling, kwargs) or spelling in _NO_OPERATOR:
        return None
    if len(args) == 1 and name in _UNARY:
        return _UNARY[name], args
    if len(args) == 2 and name in _OPERATORS:
        return _OPERATORS[name], args
    if len(args) == 2 and name in _REVERSED:
        return _REVERSED[name], (args[1], args[0])
    return None


def is_silent(func: Any, name: str) -> bool:
    """Whether a call leaves no operation in a trace: it only describes, asks, reads a value or sets a mode."""
    if is_property_write(func):
        return True
    says = operation(name).says
    if says == "reads":
        return not is_property(func)
    if says == "size":
        return name != "size" or func is torch.Tensor.size
    return says in ("describes", "asks", "mode")
