"""`torch.fx.symbolic_trace` runs a model on symbols in place of tensors: RegBN becomes one call of the graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.fx import Proxy

from .._errors import CaptureError


def symbols_in(value: Any, depth: int = 0) -> Iterator[Proxy]:
    """The symbols in lists, tuples and dicts."""
    if isinstance(value, Proxy):
        yield value
    elif isinstance(value, list | tuple | dict) and depth < _DEEPEST:
        for child in value.values() if isinstance(value, dict) else value:
            yield from symbols_in(child, depth + 1)


def as_one_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a call of `module` gives, in the graph that the symbols among the arguments belong to.

    The traced model holds the very module, so that its state moves there as it does in the model that was traced.

    Raises:
        CaptureError: where the module is itself what is traced, or no part of it.
    """
    tracer: Any = next(symbols_in((args, kwargs))).tracer
    try:
        path = tracer.path_of_module(module)
    except (AttributeError, NameError):  # a function is traced, or a tracer has no modules
        path = ""
    if not path:
        raise CaptureError(
            f"torch.fx.symbolic_trace records {type(module).__name__} as one call of a module, so it needs a model "
            "that holds it. Trace a module that has it as a submodule."
        )
    given = {name: value for name, value in kwargs.items() if value is not None}
    return tracer.create_proxy("call_module", path, args, given)


def as_one_call_for_two(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The same of a module that returns two tensors."""
    pair = as_one_call(module, *args, **kwargs)
    return pair[0], pair[1]


_DEEPEST = 12
