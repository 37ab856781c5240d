"""Walk and rebuild the containers that models take and return.

`torch.utils._pytree` knows only registered types; users' models take dataclasses, namedtuples, `BatchEncoding`s and
`ModelOutput`s that nobody registered, so the few kinds of container are spelled out here once.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

#: Deeper nesting than this is taken for a cycle or for an object that only looks like a container.
MAX_DEPTH = 12


def is_namedtuple(value: object) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def items(value: object) -> list[tuple[str | int, Any]] | None:
    """The (key, child) pairs of a container in order, or None for a leaf."""
    if isinstance(value, torch.Tensor | PackedSequence | torch.Size):
        return None
    if isinstance(value, Mapping):
        return [(key, value[key]) for key in value]
    if is_namedtuple(value):
        fields: Any = value
        return list(zip(fields._fields, fields, strict=True))
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def leaves(value: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every leaf with its dotted name."""
    children = items(value) if depth < MAX_DEPTH else None
    if children is None:
        yield name, value
        return
    for key, child in children:
        yield from leaves(child, f"{name}.{key}" if name else str(key), depth + 1)


def tensors(value: object) -> list[torch.Tensor]:
    """Every tensor in a structure, in order; a packed sequence counts as its data."""
    found = []
    for _, leaf in leaves(value):
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif isinstance(leaf, PackedSequence):
            found.append(leaf.data)
    return found


def rebuild(value: Any, change: Callable[[str, Any], Any], name: str = "", depth: int = 0) -> Any:
    """The same structure with every leaf replaced by `change(dotted name, leaf)`; containers are new objects."""
    children = items(value) if depth < MAX_DEPTH else None
    if children is None:
        return change(name, value)
    new = {key: rebuild(child, change, f"{name}.{key}" if name else str(key), depth + 1) for key, child in children}
    if is_namedtuple(value):
        return type(value)(**{str(key): child for key, child in new.items()})
    if isinstance(value, list | tuple):
        plain = list(new.values())
        return plain if type(value) is list else type(value)(plain)
    if type(value) is dict:
        return new
    clone = copy.copy(value)
    if isinstance(value, Mapping):
        if getattr(clone, "data", None) is getattr(value, "data", clone):
            # `UserDict` subclasses such as BatchEncoding share their dict with a shallow copy.
            clone.data = dict(value)
        for key, child in new.items():
            clone[key] = child
        return clone
    for key, child in new.items():
        object.__setattr__(clone, str(key), child)
    return clone


def cloned(value: Any) -> Any:
    """The same structure with every tensor in other memory, for a run that may write to it; one tensor stays one."""
    made: dict[int, torch.Tensor] = {}

    def change(_: str, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, torch.nn.Parameter):
            return leaf
        return made.setdefault(id(leaf), leaf.clone() if leaf.requires_grad else leaf.detach().clone())

    return rebuild(value, change)


def bind(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by parameter name; `*inputs` stays one tuple, `**kwargs` is spread.

    Raises:
        TypeError: as calling `forward` would.
    """
    signature = inspect.signature(forward)
    bound = signature.bind(*args, **kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        else:
            named[name] = value
    return named
