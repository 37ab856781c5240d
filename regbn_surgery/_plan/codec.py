"""A plan as plain JSON types and back, so that one can be stored, sent, compared and applied later.

Keys are only ever added under the same `plan_version`; a removed or changed one raises it. What is read back is
held to the dataclasses' own types, since a file may have been written by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import _codec
from .._codec import CodecError
from .._errors import PlanError
from .._types import Plan
from .sound import refuse_unsound

PLAN_VERSION = 1


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """See `Plan.to_dict`."""
    try:
        return {"plan_version": PLAN_VERSION, **_codec.plain(plan)}
    except CodecError as fault:
        raise PlanError(f"the plan cannot be written: {fault}") from fault


def plan_from_dict(content: Mapping[str, Any]) -> Plan:
    """See `Plan.from_dict`."""
    try:
        return _read(content)
    except CodecError as fault:
        raise PlanError(f"not a plan: {fault}") from fault


def plan_from_json(text: str) -> Plan:
    """See `Plan.from_json`."""
    try:
        return _read(_codec.parse(text))
    except CodecError as fault:
        raise PlanError(f"not a plan: {fault}") from fault


def _read(content: Any) -> Plan:
    if not isinstance(content, Mapping):
        raise CodecError("", f"a mapping is expected; found {'nothing' if content is None else type(content).__name__}")
    version = content.get("plan_version")
    if version != PLAN_VERSION or isinstance(version, bool):
        raise CodecError("plan_version", f"this release reads version {PLAN_VERSION} of plans; found {version!r}")
    plan = _codec.build(Plan, {key: value for key, value in content.items() if key != "plan_version"})
    for number, site in enumerate(plan.sites):
        refuse_unsound(site, f"sites[{number}]")
    return plan
