"""Example inputs with some of them made anew: what `--input` adds to the inputs that a factory gives."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ._errors import InputsError
from ._inputs import Inputs, InputsLike, are_two, as_inputs, from_specs, is_function


def with_specs(model: nn.Module, example: InputsLike | None, specs: Mapping[str, Any]) -> InputsLike:
    """An example with further random inputs, as `from_specs` makes them, or with others in place of its own.

    `specs` go by dotted names. A function from the batch size stays one; of two calls both get the inputs.

    Raises:
        InputsError: for a form of example that could mean two things, or a name that leads into a tensor.
    """
    if example is None:
        return from_specs(specs)
    if is_function(example):
        return lambda size: _added(model, as_inputs(example(size)), specs)
    if are_two(example):
        return [_added(model, as_inputs(call), specs) for call in example]
    return _added(model, as_inputs(example), specs)


def _added(model: nn.Module, inputs: Inputs, specs: Mapping[str, Any]) -> Inputs:
    """The call with other or further arguments; those that were given by position stay there."""
    parameters = list(inspect.signature(model.forward).parameters.values())[: len(inputs.args)]
    positions = {p.name: i for i, p in enumerate(parameters) if p.kind is not p.VAR_POSITIONAL}
    args, kwargs = list(inputs.args), dict(inputs.kwargs)
    fresh: dict[str, Any] = {}
    for name, spec in specs.items():
        first, *rest = name.split(".")
        made = from_specs({"made": spec}).kwargs["made"]
        if first in positions:
            args[positions[first]] = _put(args[positions[first]], rest, made, name)
        elif first in kwargs:
            kwargs[first] = _put(kwargs[first], rest, made, name)
        else:
            fresh[name] = spec
    return Inputs(*args, **kwargs, **from_specs(fresh).kwargs)


def _put(value: Any, path: Sequence[str], made: Tensor, name: str) -> Any:
    """`value` with `made` at a path of keys and indices; containers on the way are copied."""
    if not path:
        return made
    first, *rest = path
    if isinstance(value, Mapping):
        changed: Any = copy.copy(value)
        changed[first] = _put(value.get(first, {}), rest, made, name)
        return changed
    if type(value) in (list, tuple) and first.isdigit() and int(first) <= len(value):
        items = [*value, {}] if int(first) == len(value) else list(value)
        items[int(first)] = _put(items[int(first)], rest, made, name)
        return type(value)(items)
    raise InputsError(
        f"the input `{name}`: the example has a {type(value).__name__} where `{first}` should be looked up. Give all "
        "example inputs (on the command line `--inputs MODULE:NAME`)."
    )
