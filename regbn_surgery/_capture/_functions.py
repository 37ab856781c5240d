"""What the recorder must know about single torch functions: which ones only ask, read, write or change state."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

#: Methods and properties that describe a tensor. They carry no data, so they leave no node behind.
DESCRIBING = frozenset({
    "dim", "ndim", "ndimension", "dtype", "layout", "is_cuda", "is_meta", "is_sparse", "is_quantized", "requires_grad",
    "grad_fn", "is_leaf", "is_mkldnn", "is_mps", "is_xpu", "is_cpu", "is_nested", "is_floating_point", "is_complex",
    "is_signed", "is_contiguous", "stride", "__len__", "storage_offset", "data_ptr", "_version", "element_size",
    "__hash__", "is_same_size", "is_inference", "__repr__", "__format__", "get_device", "itemsize", "nbytes", "names",
    "_backward_hooks", "retain_grad", "grad", "_is_view", "untyped_storage", "is_pinned", "is_shared",
    "has_names", "is_conj", "is_neg", "is_set_to", "_base", "name", "output_nr", "retains_grad", "is_vulkan", "is_ipu",
    "is_maia", "is_mtia", "is_sparse_csr", "_is_zerotensor", "is_coalesced",
})  # fmt: skip
#: Functions of no tensor that ask torch about its settings.
ASKING = frozenset({
    "get_default_dtype", "get_default_device", "is_grad_enabled", "is_tensor", "is_storage", "result_type",
    "promote_types", "can_cast", "_has_torch_function", "is_autocast_enabled", "is_inference_mode_enabled",
    "get_rng_state", "is_deterministic_algorithms_warn_only_enabled", "are_deterministic_algorithms_enabled",
    "_has_compatible_shallow_copy_type", "broadcast_shapes", "device",
})  # fmt: skip
#: Those of them that tell the type of numbers, which autocast decides, too.
TYPING = frozenset({
    "dtype", "is_floating_point", "is_complex", "element_size", "itemsize", "nbytes", "result_type",
    "get_default_dtype", "is_inference", "is_inference_mode_enabled", "is_autocast_enabled",
})  # fmt: skip
#: Methods that bring a value out of a tensor into Python.
READING = frozenset({
    "__bool__", "item", "tolist", "__float__", "__int__", "__index__", "__complex__", "numpy", "__array__",
    "__contains__", "equal", "allclose", "is_nonzero",
})  # fmt: skip

_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "__add__": operator.add, "sub": operator.sub, "__sub__": operator.sub,
    "mul": operator.mul, "__mul__": operator.mul, "div": operator.truediv, "__truediv__": operator.truediv,
    "matmul": operator.matmul, "__matmul__": operator.matmul, "__getitem__": operator.getitem,
    "__and__": operator.and_, "__or__": operator.or_, "__eq__": operator.eq, "eq": operator.eq, "__ne__": operator.ne,
    "ne": operator.ne, "__lt__": operator.lt, "lt": operator.lt, "__gt__": operator.gt, "gt": operator.gt,
    "__le__": operator.le, "le": operator.le, "__ge__": operator.ge, "ge": operator.ge, "pow": operator.pow,
    "__pow__": operator.pow, "__floordiv__": operator.floordiv,
}  # fmt: skip
_REVERSED: dict[str, Callable[..., Any]] = {
    "__radd__": operator.add, "__rsub__": operator.sub, "__rmul__": operator.mul, "__rtruediv__": operator.truediv,
    "__rdiv__": operator.truediv, "__rpow__": operator.pow, "__rmatmul__": operator.matmul,
}  # fmt: skip
_UNARY: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "__neg__": operator.neg,
    "__invert__": operator.invert,
}

_STATE_SETTERS = frozenset({"set_grad_enabled", "_set_grad_enabled", "manual_seed", "set_rng_state", "seed"})


def name_of(func: Any) -> str:
    """The function's own name; for a property of a tensor (`x.T`), the property's."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        owner = getattr(func, "__self__", None)
        return str(getattr(owner, "__name__", name))
    return str(name)


def is_property(func: Any) -> bool:
    return getattr(func, "__name__", "") == "__get__"


def is_property_write(func: Any) -> bool:
    return getattr(func, "__name__", "") == "__set__"


#: `Tensor.__pow__` and its like go by the name of another function, which is not the same object.
_RENAMED = frozenset({torch.Tensor.__pow__, torch.Tensor.__ipow__, torch.Tensor.__itruediv__, torch.Tensor.__rtruediv__,
                      torch.Tensor.__abs__, torch.Tensor.__neg__, torch.Tensor.__pos__})  # fmt: skip


def is_method(func: Any) -> bool:
    return func in _RENAMED or getattr(torch.Tensor, getattr(func, "__name__", ""), None) is func


def is_inplace(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether the call writes into an operand: trailing underscore, augmented assignment, `out=`, `inplace=True`."""
    if name == "__setitem__" or kwargs.get("out") is not None or kwargs.get("inplace") is True:
        return True
    if name.startswith("__i") and name.endswith("__"):
        return name not in ("__invert__", "__index__", "__int__")
    return name.endswith("_") and not name.endswith("__")


def sets_state(name: str) -> bool:
    """Calls kept in the graph although nothing uses their result."""
    return name in _STATE_SETTERS


def as_operator(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """`a + b` instead of `a.add(b)`: the captured code is read by people."""
    if kwargs:
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
    if is_property_write(func) or name in ("shape", "numel", "nelement") or func is torch.Tensor.size:
        return True
    if name == "device" and is_property(func):
        return True
    if name in READING and not is_property(func):
        return True
    return name in DESCRIBING or name in ASKING or name in ("set_grad_enabled", "_set_grad_enabled")
