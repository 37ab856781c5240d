"""The zoo as one table: `python -m tests.zoo [NAME...]`, from the top of the repository.

For every model: fusion points found, missed and extra; levels and sites right; whether the rewritten model is exact
with RegBN as identity, in evaluation and training, at both batch sizes; time of `inspect` against one eager forward.
Exits with 1 if anything differs from the truth.
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

import regbn_surgery
from regbn_surgery._rewrite import identity

from . import CASES, ZooCase, _compare
from ._running import run

COLUMNS = (
    "model",
    "points",
    "missed",
    "extra",
    "levels",
    "sites",
    "exact",
    "eager ms",
    "inspect ms",
    "what went wrong",
)


@dataclass
class Row:
    """What one model gave; a field that was not reached stays empty."""

    name: str
    points: str = ""
    missed: str = ""
    extra: str = ""
    levels: str = ""
    sites: str = ""
    exact: str = ""
    eager: str = ""
    inspect: str = ""
    trouble: str = ""

    @property
    def good(self) -> bool:
        return (self.missed, self.extra, self.levels, self.sites, self.exact) == ("0", "0", "yes", "yes", "yes")


def examine(case: ZooCase) -> Row:
    row = Row(case.name)
    try:
        _inspect(case, row)
        _rewrite(case, row)
    except Exception as error:  # noqa: BLE001 - a table of failures is the very purpose, and each is shown
        row.trouble = textwrap.shorten(f"{type(error).__name__}: {error}", 120, placeholder=" ...")
    return row


def _inspect(case: ZooCase, row: Row) -> None:
    model = case.model()
    started = time.perf_counter()
    run(model, case.example(2), train=False)
    eager = time.perf_counter()
    inspection = regbn_surgery.inspect(model, case.example, modalities=dict(case.modalities))
    row.inspect = f"{1000 * (time.perf_counter() - eager):.0f}"
    row.eager = f"{1000 * (eager - started):.0f}"
    difference = _compare.points(case, inspection)
    row.points = str(len(inspection.fusion_points))
    row.missed, row.extra = str(difference.missed.total()), str(difference.extra.total())
    row.levels = _yes(not _compare.levels(case, inspection))
    row.sites = _yes(not _compare.sites(case, inspection))


def _rewrite(case: ZooCase, row: Row) -> None:
    original = case.model()
    rewritten = regbn_surgery.regbnify(original, case.rules_dict(), case.example)
    exact = not _compare.modules(case, rewritten)
    for batch in case.batches:
        for train in (False, True):
            with identity(rewritten):
                found = run(rewritten, case.example(batch), train=train)
            expected = run(original, case.example(batch), train=train)
            exact &= len(found) == len(expected)
            exact &= all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=False))
    row.exact = _yes(exact)


def _yes(good: bool) -> str:
    return "yes" if good else "NO"


def main(names: Sequence[str]) -> int:
    warnings.simplefilter("ignore")
    table = Table(*COLUMNS, title=f"{len(CASES)} models")
    rows = [examine(case) for case in CASES if not names or case.name in names]
    for row in rows:
        cells = (row.name, row.points, row.missed, row.extra, row.levels, row.sites, row.exact)
        table.add_row(*cells, row.eager, row.inspect, row.trouble, style=None if row.good else "red")
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print(f"{sum(row.good for row in rows)} of {len(rows)} as the truth says")
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
