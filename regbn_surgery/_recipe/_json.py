"""Frozen dataclasses as JSON and back, by their type hints: what a recipe is written with.

Fields at their default are left out, so that the file stays small and older files can still be read when a field is
added. Nothing but dataclasses, tuples, mappings and plain values can be written.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .._errors import RecipeError

_PLAIN = (str, bool, int, float, type(None))


def to_json(value: Any) -> Any:
    """Plain JSON types for a dataclass.

    Raises:
        RecipeError: for a value that JSON cannot hold.
    """
    if isinstance(value, _PLAIN):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        items = ((field, getattr(value, field.name)) for field in fields(value))
        return {field.name: to_json(item) for field, item in items if item != _default(field)}
    if isinstance(value, Mapping):
        if strange := [key for key in value if not isinstance(key, str)]:
            raise RecipeError(f"a recipe cannot hold a mapping by {type(strange[0]).__qualname__}: {strange[0]!r}")
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    raise RecipeError(f"a recipe cannot hold a {type(value).__module__}.{type(value).__qualname__}: {value!r}")


def from_json(hint: Any, data: Any, where: str) -> Any:
    """The value of type `hint` that `data` was written from; `where` names the place in error messages.

    Raises:
        RecipeError: where `data` does not fit.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return data
    if is_dataclass(hint):
        return _dataclass(hint, data, where)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        return from_json(next(x for x in arguments if x is not type(None)), data, where)
    if origin is Literal:
        return _checked(data, data in arguments, f"one of {', '.join(map(str, arguments))}", where)
    if origin is tuple:
        return _tuple(arguments, data, where)
    if origin is not None and issubclass(origin, Mapping):
        _checked(data, isinstance(data, dict), "an object", where)
        return {key: from_json(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    return _checked(data, type(data) is hint, getattr(hint, "__name__", str(hint)), where)


def _dataclass(cls: Any, data: Any, where: str) -> Any:
    _checked(data, isinstance(data, dict), "an object", where)
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls)}
    strange = sorted(set(data) - set(known))
    if strange:
        raise RecipeError(
            f"The recipe holds {where}.{strange[0]}, which this version of regbn_surgery does not know. "
            "Was it written by a newer one?"
        )
    missing = sorted(name for name, field in known.items() if name not in data and _default(field) is MISSING)
    if missing:
        raise RecipeError(f"The recipe lacks {where}.{missing[0]}. Is the file complete?")
    return cls(**{name: from_json(hints[name], item, f"{where}.{name}") for name, item in data.items()})


def _tuple(arguments: Sequence[Any], data: Any, where: str) -> tuple[Any, ...]:
    _checked(data, isinstance(data, list), "a list", where)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(from_json(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    _checked(data, len(data) == len(arguments), f"a list of {len(arguments)}", where)
    pairs = zip(arguments, data, strict=True)
    return tuple(from_json(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(pairs))


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _checked(data: Any, good: bool, wanted: str, where: str) -> Any:
    if not good:
        raise RecipeError(f"The recipe holds {data!r} at {where}, where {wanted} belongs")
    return data
