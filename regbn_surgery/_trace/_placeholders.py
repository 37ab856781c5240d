"""The graph's own signature: placeholders as the user's `forward` declares them, defaults included."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from ._recorder import Recorder

_SIMPLE = (int, float, bool, str, type(None))


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """The names that the forward of a module takes arguments by; none where it has no signature."""
    try:
        return tuple(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return ()


def bind_arguments(
    recorder: Recorder, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """One placeholder per parameter; `*args` and `**kwargs` are placeholders too, which fx writes out as such.

    Keyword-only parameters become ordinary ones: fx cannot write the bare `*`, and accepting more is harmless.
    """
    signature = inspect.signature(forward)
    bound = signature.bind(*args, **kwargs)
    parameters = list(signature.parameters.values())
    parameters.sort(key=lambda p: p.kind is inspect.Parameter.VAR_KEYWORD)
    defaulted = False
    for parameter in parameters:
        prefix = "*" * (parameter.kind is parameter.VAR_POSITIONAL) + "**" * (parameter.kind is parameter.VAR_KEYWORD)
        default = () if parameter.default is parameter.empty else (_default(parameter.default),)
        if defaulted and not default and not prefix:  # a required keyword behind an optional argument
            default = (None,)
        defaulted = defaulted or bool(default)
        node = recorder.graph.create_node("placeholder", prefix + parameter.name, default)
        if parameter.name in bound.arguments:
            recorder.bind(bound.arguments[parameter.name], node)


def _default(value: Any) -> Any:
    # A variant is only ever called with the same arguments given or left out, so other defaults need not be written.
    return value if isinstance(value, _SIMPLE) else None
