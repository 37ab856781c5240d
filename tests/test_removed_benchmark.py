"""The command that makes the tables of docs/regbn.md runs, and its figures are of what it says."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import what_is_removed

    yield what_is_removed
    sys.modules.pop("what_is_removed", None)


def test_the_tables(
    benchmark, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark, "FACTORS", (1, 8))
    monkeypatch.setattr(benchmark, "BATCHES", (64,))
    written_to = tmp_path / "a.csv"
    monkeypatch.setattr(sys, "argv", ["what_is_removed.py", "--steps", "40", "--seeds", "1", "--csv", str(written_to)])
    benchmark.main()
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0] not in ("constraint", "---"):
            rows.setdefault(cells[0], tuple(float(cell) for cell in cells[1:]))
    assert all(value > 0.4 for value in rows["before"])
    assert rows["smoother"][0] < 0.1 < 0.2 < rows["smoother"][1]
    assert max(rows["gcv"]) < 0.15
    assert rows["gcv, centred"][1] < rows["smoother, centred"][1]
    with written_to.open(newline="") as file:
        written = [row for row in csv.DictReader(file) if row["offset"] == "False"]
    assert {row["constraint"] for row in written} == {"before", *benchmark.WAYS}
    of_gcv = [float(row["r2"]) for row in written if row["constraint"] == "gcv"]
    assert [f"{value:.2f}" for value in of_gcv] == [f"{value:.2f}" for value in rows["gcv"]]
