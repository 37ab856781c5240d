"""A plan as plain JSON types and back, so that one can be stored, sent, compared and applied later.

Keys are only ever added under the same `plan_version`; a removed or changed one raises it. What is read back is
held to the dataclasses' own types, since a file may have been written by hand.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from .._errors import PlanError
from .._rules.problems import did_you_mean, listing
from .._types import Plan
from ..nn.options import RegBNOptions

PLAN_VERSION = 1


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """See `Plan.to_dict`."""
    content: dict[str, Any] = {"plan_version": PLAN_VERSION, **_plain(plan)}
    return content


def plan_from_dict(content: Mapping[str, Any]) -> Plan:
    """See `Plan.from_dict`."""
    if not isinstance(content, Mapping):
        raise _wrong("", f"a mapping is expected; found {_kind(content)}")
    version = content.get("plan_version")
    if version != PLAN_VERSION:
        raise _wrong("plan_version", f"this release reads version {PLAN_VERSION} of plans; found {version!r}")
    rest = {key: value for key, value in content.items() if key != "plan_version"}
    plan: Plan = _read(Plan, rest, "")
    _check(plan)
    return plan


def plan_from_json(text: str) -> Plan:
    """See `Plan.from_json`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"not a plan: not JSON: {error}") from error
    return plan_from_dict(content)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _read(wanted: Any, value: Any, where: str) -> Any:
    """`value` as a `wanted`, which is a type hint of one of the dataclasses."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return value
    if origin is typing.Literal:
        if value not in arguments:
            raise _wrong(where, f"must be one of {listing(map(str, arguments))}; found {value!r}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _read(next(part for part in arguments if part is not type(None)), value, where)
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _wrong(where, f"a mapping is expected; found {_kind(value)}")
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(wanted):
        return _read_object(wanted, value, where)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise _wrong(where, f"{wanted.__name__} is expected; found {_kind(value)}")
    return value


def _read_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(where, f"a list is expected; found {_kind(value)}")
    if arguments[-1:] == (Ellipsis,):
        arguments = arguments[:1] * len(value)
    if len(arguments) != len(value):
        raise _wrong(where, f"a list of {len(arguments)} is expected; found {len(value)}")
    pairs = zip(arguments, value, strict=True)
    return tuple(_read(part, item, f"{where}[{index}]") for index, (part, item) in enumerate(pairs))


def _read_object(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(where, f"a mapping is expected; found {_kind(value)}")
    hints, entries = _hints(cls), {entry.name: entry for entry in dataclasses.fields(cls)}
    for key in value:
        if key not in entries:
            raise _wrong(where, f"unknown key {key!r}{did_you_mean(str(key), entries)}")
    for name, entry in entries.items():
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise _wrong(where, f"the key {name!r} is missing")
    return cls(**{key: _read(hints[key], item, f"{where}.{key}" if where else key) for key, item in value.items()})


def _check(plan: Plan) -> None:
    """What types do not say: options are RegBN's, and axes are axes of their tensors."""
    for number, site in enumerate(plan.sites):
        where = f"sites[{number}]"
        for name, value in site.options.items():
            if name not in RegBNOptions.names():
                raise _wrong(
                    f"{where}.options", f"RegBN has no option {name!r}{did_you_mean(name, RegBNOptions.names())}"
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise _wrong(f"{where}.options.{name}", "a finite number is expected")
        if (site.point is None) == (site.pair is None):
            raise _wrong(where, "a site is at a `point` or at a `pair`")


def _wrong(where: str, text: str) -> PlanError:
    return PlanError(f"not a plan: {where + ': ' if where else ''}{text}")


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
