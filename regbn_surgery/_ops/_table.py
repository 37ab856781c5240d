"""The table: every spelling of an operation leads to its one row."""

from __future__ import annotations

import functools
import re
from typing import Any, Literal

from . import _elementwise, _joins, _moves, _silent
from ._operation import Operation

ROWS: tuple[Operation, ...] = (*_joins.ROWS, *_moves.ROWS, *_elementwise.ROWS, *_silent.ROWS)


def _by_spelling() -> dict[str, Operation]:
    table: dict[str, Operation] = {}
    for row in ROWS:
        for spelling in (row.name, *row.spellings):
            assert spelling not in table, f"two rows claim the spelling {spelling!r}"
            table[spelling] = row
    return table


_TABLE = _by_spelling()


@functools.cache
def operation(name: str) -> Operation:
    """The row of an operation, by any of its spellings: of a function, a method, an operator or a class of modules.

    What is not in the table, and no layer whose name says what it is, has a row that claims nothing.
    """
    row = _TABLE.get(name)
    if row is None and _works_in_place(name):
        row = _TABLE.get(name[:-1])
    return row if row is not None else _layer(name)


@functools.cache
def canonical(name: str) -> str:
    """The one name of an operation, for the spelling of a function, a method or an operator."""
    row = operation(name)
    return row.name if row.name in _TABLE else name


def _works_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _layer(name: str) -> Operation:
    lower = name.lower()
    sized = re.search(r"([123])d", lower)
    spatial = int(sized.group(1)) if sized else 0
    for pattern, axes, channels, dim, default in _moves.PATTERNS:
        if re.match(pattern, lower):
            where: Any = channels
            return Operation(name, axes=axes, dim=dim, default=default, spatial=spatial, channels=where)
    family: Literal["loss", "other"] = "loss" if name.endswith(("_loss", "Loss")) else "other"
    return Operation(name, family=family)


def names_a_norm(name: str) -> bool:
    """Whether a function or a class says by its name that it normalises."""
    return "norm" in name.lower()
