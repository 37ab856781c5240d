"""The zoo as one table: `python -m tests.zoo [NAME...]`, from the top of the repository.

For every model: fusion points found of those labelled, missed and extra; levels and sites right; whether the rewritten
model is exact with RegBN as identity, in evaluation, in training, and at another batch size than the example's; time
of `inspect` against one eager forward. The last line is the total. Exits with 1 if anything differs from the truth.
"""

from __future__ import annotations

import sys
import textwrap
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import regbn_surgery
from regbn_surgery._surgery import identity

from . import CASES, ZooCase, _compare
from ._running import run

COLUMNS = (
    "model",
    "found / labelled",
    "missed",
    "extra",
    "levels",
    "sites",
    "eval",
    "train",
    "other batch",
    "inspect s",
    "x eager",
    "what went wrong",
)


@dataclass
class Row:
    """What one model gave; a field that was not reached stays None."""

    name: str
    pending: bool
    labelled: int
    found: int | None = None
    missed: int | None = None
    extra: int | None = None
    levels: bool | None = None
    sites: bool | None = None
    evaluation: bool | None = None
    training: bool | None = None
    other_batch: bool | None = None
    inspect: float | None = None
    eager: float | None = None
    trouble: str = ""

    @property
    def good(self) -> bool:
        right = (self.levels, self.sites, self.evaluation, self.training, self.other_batch)
        return (self.missed, self.extra) == (0, 0) and all(right)


def examine(case: ZooCase) -> Row:
    row = Row(case.name, bool(case.pending), len(case.points))
    try:
        _inspect(case, row)
        _rewrite(case, row)
    except Exception as error:  # noqa: BLE001 - a table of failures is the very purpose, and each is shown
        row.trouble = textwrap.shorten(f"{type(error).__name__}: {error}", 120, placeholder=" ...")
    return row


def _inspect(case: ZooCase, row: Row) -> None:
    model = case.model()
    run(model, case.example(2), train=False)  # what is only slow the first time is nobody's cost
    started = time.perf_counter()
    run(model, case.example(2), train=False)
    eager = time.perf_counter()
    inspection = regbn_surgery.inspect(model, case.example, modalities=dict(case.modalities))
    row.inspect, row.eager = time.perf_counter() - eager, eager - started
    difference = _compare.points(case, inspection)
    row.found = len(inspection.fusion_points)
    row.missed, row.extra = difference.missed.total(), difference.extra.total()
    row.levels = not _compare.levels(case, inspection)
    row.sites = not _compare.sites(case, inspection)


def _rewrite(case: ZooCase, row: Row) -> None:
    original = case.model()
    rewritten = regbn_surgery.regbnify(original, case.rules_dict(), case.example)
    right = not _compare.modules(case, rewritten)
    small, *others = case.batches
    row.evaluation = right and _exact(case, original, rewritten, small, train=False)
    row.training = right and _exact(case, original, rewritten, small, train=True)
    row.other_batch = right and all(
        _exact(case, original, rewritten, batch, train=train) for batch in others for train in (False, True)
    )


def _exact(case: ZooCase, original: nn.Module, rewritten: nn.Module, batch: int, *, train: bool) -> bool:
    with identity(rewritten):
        found = run(rewritten, case.example(batch), train=train)
    expected = run(original, case.example(batch), train=train)
    same = (torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=False))
    return len(found) == len(expected) and all(same)


def _cells(row: Row) -> Sequence[str]:
    def word(value: bool | int | None) -> str:
        return "" if value is None else "yes" if value is True else "NO" if value is False else str(value)

    ratio = "" if row.inspect is None or not row.eager else f"{row.inspect / row.eager:.0f}"
    return (
        row.name,
        f"{word(row.found)} / {row.labelled}",
        *map(word, (row.missed, row.extra, row.levels, row.sites, row.evaluation, row.training, row.other_batch)),
        "" if row.inspect is None else f"{row.inspect:.2f}",
        ratio,
        row.trouble,
    )


def _total(rows: Sequence[Row]) -> Sequence[str]:
    def held(name: str) -> str:
        return f"{sum(bool(getattr(row, name)) for row in rows)} of {len(rows)}"

    inspect, eager = (sum(getattr(row, name) or 0 for row in rows) for name in ("inspect", "eager"))
    return (
        f"{len(rows)} models",
        f"{sum(row.found or 0 for row in rows)} / {sum(row.labelled for row in rows)}",
        *(str(sum(getattr(row, name) or 0 for row in rows)) for name in ("missed", "extra")),
        *map(held, ("levels", "sites", "evaluation", "training", "other_batch")),
        f"{inspect:.1f}",
        f"{inspect / eager:.0f}" if eager else "",
        f"{sum(row.good for row in rows)} as the truth says, {sum(row.pending for row in rows)} with a known fault",
    )


def main(names: Sequence[str]) -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    table = Table(*COLUMNS)
    rows = [examine(case) for case in CASES if not names or case.name in names]
    for row in rows:
        table.add_row(*_cells(row), style=None if row.good else "yellow" if row.pending else "red")
    table.add_section()
    table.add_row(*_total(rows), style="bold")
    Console(width=None if sys.stdout.isatty() else 220).print(table)
    return 0 if all(row.good or row.pending for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
