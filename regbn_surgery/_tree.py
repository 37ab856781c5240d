"""Walk and rebuild the containers that models take and return.

`torch.utils._pytree` knows only registered types; users' models take dataclasses, namedtuples, `BatchEncoding`s and
`ModelOutput`s that nobody registered, so the few kinds of container are spelled out here once.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

#: Deeper nesting than this is taken for a cycle or for an object that only looks like a container.
MAX_DEPTH = 12


_MISSING: Any = object()
#: Types of most leaves: looked up here first, since calls of a rewritten model ask for them again and again. The
#: compiler of torch 2.6 follows no frozenset of types.
PLAIN = (torch.Tensor, torch.nn.Parameter, int, float, bool, str, type(None))
_LEAVES = (torch.Tensor, PackedSequence, torch.Size)


def attributes(value: object) -> dict[str, Any]:
    """The instance's own `__dict__`; empty where it has none. Runs no `__getattr__` of the user's."""
    try:
        held: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return held


def attribute(value: object, name: str, default: Any = None) -> Any:
    """`getattr(value, name, default)`, also for a class whose `__getattr__` raises KeyError, as attribute dicts' do."""
    try:
        return getattr(value, name)
    except (AttributeError, KeyError):
        return default


def is_namedtuple(value: object) -> bool:
    return isinstance(value, tuple) and hasattr(type(value), "_fields")


def is_namespace(value: object) -> bool:
    """An object of a class of the user's that holds tensors as attributes: a batch with fields."""
    if isinstance(value, (torch.Tensor, torch.nn.Module, PackedSequence, type)):
        return False
    if isinstance(value, (list, tuple, set, frozenset, str, Mapping)):
        return False
    held = attributes(value).values()
    return type(value).__module__.partition(".")[0] != "torch" and any(isinstance(x, torch.Tensor) for x in held)


def items(value: object, *, objects: bool = False) -> list[tuple[str | int, Any]] | None:
    """The (key, child) pairs of a container in order, or None for a leaf.

    With `objects` an object that holds tensors as attributes is a container as well. Arguments of a model are read in
    this way; else such objects are left alone, since many of them are no containers (caches, distributions).
    """
    if type(value) in PLAIN or isinstance(value, _LEAVES):
        return None
    if isinstance(value, Mapping):
        return [(key, value[key]) for key in value]
    if is_namedtuple(value):
        fields: Any = value
        return list(zip(type(fields)._fields, fields, strict=True))
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = [(field.name, attribute(value, field.name, _MISSING)) for field in dataclasses.fields(value)]
        return [(name, child) for name, child in found if child is not _MISSING]
    if isinstance(value, SimpleNamespace) or (objects and is_namespace(value)):
        return list(attributes(value).items())
    return None


def leaves(value: object, name: str = "", depth: int = 0, *, objects: bool = False) -> Iterator[tuple[str, Any]]:
    """Every leaf with its dotted name; `objects` as for `items`."""
    children = items(value, objects=objects) if depth < MAX_DEPTH else None
    if children is None:
        yield name, value
        return
    for key, child in children:
        yield from leaves(child, f"{name}.{key}" if name else str(key), depth + 1, objects=objects)


def containers(value: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every container within another one, with its dotted name."""
    for key, child in (items(value, objects=True) if depth < MAX_DEPTH else None) or ():
        below = f"{name}.{key}" if name else str(key)
        if items(child, objects=True) is not None:
            yield below, child
            yield from containers(child, below, depth + 1)


def tensors(value: object) -> list[torch.Tensor]:
    """Every tensor in a structure, in order; a packed sequence counts as its data."""
    found: list[torch.Tensor] = []
    _collect(value, found, 0)
    return found


def _collect(value: Any, found: list[torch.Tensor], depth: int) -> None:
    kind = type(value)
    if kind is torch.Tensor:
        found.append(value)
    elif (kind is tuple or kind is list) and depth < MAX_DEPTH:
        for child in value:
            _collect(child, found, depth + 1)
    elif isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, PackedSequence):
        found.append(value.data)
    elif kind not in PLAIN:
        for _, child in (items(value) if depth < MAX_DEPTH else None) or ():
            _collect(child, found, depth + 1)


def rebuild(
    value: Any,
    change: Callable[[str, Any], Any],
    name: str = "",
    depth: int = 0,
    *,
    objects: bool = False,
    whole: Callable[[str], bool] | None = None,
    made: dict[int, Any] | None = None,
) -> Any:
    """The same structure with every leaf replaced by `change(dotted name, leaf)`; containers are new objects.

    `objects` as for `items`; containers whose name `whole` says are leaves as well. An object that is there twice is
    one object in the result, too. `made` holds those.
    """
    made = {} if made is None else made
    if made and id(value) in made:  # in this order: the compiler of torch before 2.13 knows no id of a tensor
        return made[id(value)]
    is_leaf = depth >= MAX_DEPTH or (whole is not None and whole(name))
    children = None if is_leaf else items(value, objects=objects)
    if children is None:
        return change(name, value)
    new = {
        key: rebuild(
            child, change, f"{name}.{key}" if name else str(key), depth + 1, objects=objects, whole=whole, made=made
        )
        for key, child in children
    }
    if isinstance(value, tuple):
        return _new_tuple(value, list(new.values()))
    if type(value) is list:
        return list(new.values())
    if type(value) is dict:
        return new
    if type(value) is MappingProxyType:
        return MappingProxyType(new)
    clone = shallow_copy(value)
    if isinstance(value, list):
        list.__setitem__(clone, slice(None), list(new.values()))
    elif isinstance(value, Mapping):
        _fill_mapping(clone, value, new)
    else:
        made[id(value)] = clone
        for key, child in new.items():
            object.__setattr__(clone, str(key), child)
    return clone


def _new_tuple(value: Any, children: list[Any]) -> Any:
    """A tuple of the class of `value`, without a constructor of the user's where that can be."""
    if type(value) is tuple:
        return tuple(children)
    try:
        new = tuple.__new__(type(value), children)
    except TypeError:  # torch's own, such as the result of `torch.max`
        return type(value)(children)
    attributes(new).update(attributes(value))
    return new


def shallow_copy(value: Any) -> Any:
    """`copy.copy(value)`, also for classes whose `__getattr__` does not bear being asked for `__setstate__`."""
    try:
        return copy.copy(value)
    except (KeyError, TypeError, AttributeError):
        cls: Any = type(value)
        clone = cls.__new__(cls)
        attributes(clone).update(attributes(value))
        if isinstance(value, dict):
            dict.update(clone, value)
        return clone


def _fill_mapping(clone: Any, value: Mapping[Any, Any], new: dict[Any, Any]) -> None:
    """Let `clone`, a shallow copy of `value`, hold `new`.

    A mapping that keeps its items in a dict of its own (`UserDict`, BatchEncoding) shares that dict with the copy.
    """
    own = attributes(value)
    for name, held in list(attributes(clone).items()):
        shared = held is own.get(name, _MISSING)
        if shared and isinstance(held, dict) and held.keys() == new.keys():
            object.__setattr__(clone, name, _new_dict(held, new))
    for key, child in new.items():
        if clone[key] is child:
            continue
        try:
            clone[key] = child
        except (TypeError, AttributeError, NotImplementedError):
            if not isinstance(clone, dict):
                raise
            dict.__setitem__(clone, key, child)  # a dict that is closed to its users


def _new_dict(held: dict[Any, Any], new: dict[Any, Any]) -> dict[Any, Any]:
    """A dict of the class of `held` that holds `new`."""
    if type(held) is dict:
        return dict(new)
    other: dict[Any, Any] = shallow_copy(held)
    for key, child in new.items():
        dict.__setitem__(other, key, child)
    return other


def cloned(value: Any) -> Any:
    """The same structure with every tensor in other memory, for a run that may write to it; one tensor stays one."""
    made: dict[int, torch.Tensor] = {}

    def change(_: str, leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            return leaf.copy()
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, torch.nn.Parameter):
            return leaf
        return made.setdefault(id(leaf), leaf.clone() if leaf.requires_grad else leaf.detach().clone())

    return rebuild(value, change, objects=True)


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
