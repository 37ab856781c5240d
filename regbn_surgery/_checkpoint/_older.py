"""Recipes that earlier releases have written, in the form of today."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def modernised(content: dict[str, Any]) -> dict[str, Any]:
    """The plain content of a recipe with `masks` in each way, in place of one mask that two records shared.

    What does not look like such a record is left for the codec to refuse.
    """
    operations = content.get("operations")
    if not isinstance(operations, list):
        return content
    return {**content, "operations": [_operation(op) if isinstance(op, dict) else op for op in operations]}


def _operation(operation: dict[str, Any]) -> dict[str, Any]:
    new = dict(operation)
    shared = new.pop("masking", None)
    if shared is not None and not (isinstance(shared, list) and len(shared) == 2):
        return operation
    for name in ("hook", "code", "graph"):
        way = new.get(name)
        if isinstance(way, dict) and "masks" not in way:
            new[name] = _way(way, (way.get("mask_of", "g"), way.get("padding", False)) if name == "hook" else shared)
    return new


def _way(way: dict[str, Any], told: Sequence[Any] | None) -> dict[str, Any]:
    """`told`: the side of the mask, and whether it leaves out; None where no mask was used, whatever its name."""
    new = {name: value for name, value in way.items() if name not in ("mask", "mask_of", "padding")}
    if way.get("mask") is not None and told is not None:
        new["masks"] = [{"side": told[0], "argument": way["mask"], "leaves_out": told[1]}]
    return new
