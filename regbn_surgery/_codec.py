"""Frozen dataclasses as plain JSON types and back: what plans and recipes are written and read with.

Reading is pydantic's, strict: no unknown key, no value of another type, no more depth than its parser allows. Nothing
but the dataclasses asked for is ever made, so a hostile file cannot run code. Writing is ours: pydantic changes keys
that JSON cannot hold without a word.
"""

from __future__ import annotations

import functools
import json
import typing
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json

from ._rules.problems import did_you_mean, listing, spell

T = TypeVar("T")
#: The largest document that is read, in bytes; recipes of the largest models in the zoo have 100 KiB.
LARGEST = 32 * 2**20
_PLAIN = (str, bool, int, float, type(None))


class CodecError(Exception):
    """A value that does not fit. `where` is its place in the document: `sites[0].f.layout.batch_dim`."""

    def __init__(self, where: str, text: str) -> None:
        super().__init__(f"{where}: {text}" if where else text)
        self.where = where
        self.text = text


# -- writing ----------------------------------------------------------------------------------------------------------


def plain(value: Any, *, defaults: bool = True, where: str = "") -> Any:
    """Plain JSON types for a dataclass. Without `defaults`, fields that are at their default are left out.

    Raises:
        CodecError: for a value that JSON cannot hold.
    """
    if isinstance(value, _PLAIN):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        items = ((field, getattr(value, field.name)) for field in fields(value))
        kept = {field.name: item for field, item in items if defaults or item != _default(field)}
        return {name: plain(item, defaults=defaults, where=_in(where, name)) for name, item in kept.items()}
    if isinstance(value, Mapping):
        if strange := [key for key in value if not isinstance(key, str)]:
            raise CodecError(where, f"JSON cannot hold a mapping by {type(strange[0]).__qualname__}: {strange[0]!r}")
        return {key: plain(item, defaults=defaults, where=_in(where, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, defaults=defaults, where=f"{where}[{i}]") for i, item in enumerate(value)]
    raise CodecError(where, f"JSON cannot hold a {type(value).__module__}.{type(value).__qualname__}: {value!r}")


def _in(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


# -- reading ----------------------------------------------------------------------------------------------------------


def parse(text: str | bytes) -> Any:
    """The content of a JSON document.

    Raises:
        CodecError: for what is no JSON, is nested deeper than 200, is larger than `LARGEST`, or gives a key twice.
    """
    if len(text) > LARGEST:
        raise CodecError("", f"it is larger than {LARGEST // 2**20} MiB")
    try:
        content = from_json(text)  # it bounds the depth, which Python's own parser does not
    except (ValueError, RecursionError) as error:
        raise CodecError("", f"not JSON: {error}") from error
    try:
        json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # a number of more digits than Python takes
        raise CodecError("", f"not JSON: {error}") from error
    return content


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Raises CodecError for a key that an object has twice: one of its values would be passed over without a word."""
    keys = {key for key, _ in pairs}
    if len(keys) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in {other for other, _ in pairs[:number]})
        raise CodecError("", f"the key {twice!r} is there twice")


def build(cls: type[T], content: Any) -> T:
    """The dataclass that `plain` has written as `content`.

    Raises:
        CodecError: for the first value that does not fit.
    """
    try:
        text = json.dumps([content])
    except (TypeError, ValueError, RecursionError) as error:
        raise CodecError("", f"JSON cannot hold it: {error}") from error
    try:
        (value,) = _adapter(typing.cast(Hashable, cls)).validate_json(text)
    except ValidationError as error:
        raise _fault(cls, error.errors(include_url=False)) from None
    made: T = value
    return made


@functools.cache
def _adapter(cls: Hashable) -> TypeAdapter[Any]:
    """pydantic takes a configuration for a tuple, and hands it on to the dataclasses in it."""
    return TypeAdapter(tuple[cls], config=ConfigDict(strict=True, extra="forbid"))  # type: ignore[valid-type]


#: pydantic's kinds of errors, and what belongs there.
_WANTED = {
    "int_type": "int",
    "int_from_float": "int",
    "float_type": "float",
    "bool_type": "bool",
    "string_type": "str",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
}


def _fault(cls: type, errors: Sequence[ErrorDetails]) -> CodecError:
    """The first error in words. A misspelt key is told before the right one that is then missing."""
    error = next((error for error in errors if error["type"] == "unexpected_keyword_argument"), errors[0])
    kind, path, found = error["type"], error["loc"][1:], error["input"]
    if kind == "unexpected_keyword_argument":
        known = [field.name for field in fields(_hint_at(cls, path[:-1]))]
        return CodecError(spell(path[:-1]), f"unknown key {path[-1]!r}{did_you_mean(str(path[-1]), known)}")
    if kind == "missing" and isinstance(path[-1], int):
        length = 1 + max(int(other["loc"][-1]) for other in errors if other["loc"][:-1] == error["loc"][:-1])
        return CodecError(spell(path[:-1]), f"a list of {length} is expected; found {len(found)}")
    if kind == "missing":
        return CodecError(spell(path[:-1]), f"the key {path[-1]!r} is missing")
    if kind == "too_long":
        return CodecError(spell(path), f"a list of {error['ctx']['max_length']} is expected; found {len(found)}")
    if kind == "literal_error":
        choices = typing.get_args(_hint_at(cls, path))
        return CodecError(spell(path), f"must be one of {listing(map(str, choices))}; found {_shown(found)}")
    wanted = _WANTED.get(kind)
    if wanted is None:
        return CodecError(spell(path), error["msg"])
    return CodecError(
        spell(path), f"{wanted} is expected; found {'nothing' if found is None else type(found).__name__}"
    )


def _hint_at(hint: Any, path: Sequence[int | str]) -> Any:
    """The type that belongs at a place."""
    for step in path:
        if is_dataclass(hint):
            hint = typing.get_type_hints(hint)[str(step)]
        else:
            parts = typing.get_args(hint)
            hint = parts[0] if parts[-1] is Ellipsis else parts[1] if isinstance(step, str) else parts[int(step)]
        if type(None) in typing.get_args(hint):
            (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    return hint


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
