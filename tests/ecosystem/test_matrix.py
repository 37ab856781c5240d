"""The machinery of the compatibility matrix, and a small sample of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from . import _matrix, _subject, matrix
from ._matrix import Cell, Worker
from ._matrix_page import page

#: A worker that passes `good`, hangs in `slow`, and dies in `deadly`.
SCRIPT = """
import json, os, sys, time
for line in sys.stdin:
    row = json.loads(line)
    for situation in row["situations"]:
        if situation == "slow": time.sleep(60)
        if situation == "deadly": os._exit(3)
        print("a library says hello")
        print(json.dumps(dict(model=row["model"], situation=situation, status="pass")), flush=True)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    script = tmp_path / "worker.py"
    script.write_text(SCRIPT)
    return Worker(3.0, (sys.executable, str(script)))


def test_a_lost_cell_does_not_lose_the_row(worker: Worker) -> None:
    cells: list[Cell] = []
    worker.row("one", ["good", "slow", "better", "deadly", "best"], cells.append)
    worker.row("two", ["good"], cells.append)
    worker.close()
    assert [(cell.model, cell.situation, cell.status) for cell in cells] == [
        ("one", "good", "pass"),
        ("one", "slow", "fail"),
        ("one", "better", "pass"),
        ("one", "deadly", "fail"),
        ("one", "best", "pass"),
        ("two", "good", "pass"),
    ]
    assert cells[1].reason == "no result within 3 seconds"
    assert cells[3].reason == "the process ended (exit status 3)"


def test_many_rows_one_after_the_other(worker: Worker) -> None:
    cells: list[Cell] = []
    for row in range(200):
        worker.row(str(row), ["good", "better"], cells.append)
    worker.close()
    assert [cell.key for cell in cells] == [(str(row), name) for row in range(200) for name in ("good", "better")]


def test_cells_are_measured_and_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def passes(subject: _subject.Subject) -> None:
        assert subject.name == "pmr"

    def fails(subject: _subject.Subject) -> None:
        raise ValueError("on\npurpose")

    def does_not_apply(subject: _subject.Subject) -> None:
        raise _subject.DoesNotApplyError("no such thing")

    monkeypatch.setattr(_matrix, "situations", lambda: {"a": passes, "b": fails, "c": does_not_apply})
    found = [_matrix.measure("pmr", name) for name in "abc"]
    assert [(cell.status, cell.reason) for cell in found] == [
        ("pass", ""),
        ("fail", "ValueError: on purpose"),
        ("n/a", "no such thing"),
    ]


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("failed (/home/me/env/lib/python3.11/site-packages/torch/nn.py:3)", "failed (torch/nn.py:3)"),
        ("failed (/home/me/mode", "failed (mode"),
        ("failed (/home/", "failed ("),
        ("see https://pytorch.org/docs/stable/x and/or y / z", "see https://pytorch.org/docs/stable/x and/or y / z"),
    ],
)
def test_the_page_names_no_folder_of_the_machine(reason: str, shown: str) -> None:
    assert f"`{shown}`" in page([Cell("m", "one", "fail", reason)], {"one": page}, {"torch": "9"})


def test_the_page_counts_what_was_measured() -> None:
    """Two rows, two columns and a hole."""

    def first() -> None:
        """It must hold."""

    cells = [Cell("m", "one", "pass"), Cell("m", "two", "fail", "it `broke`"), Cell("n", "one", "n/a", "not at all")]
    columns = {"one": first, "two": first, "never": first}
    assert "have not been measured, and" not in page(cells, columns, {"torch": "9"}, rows=2)
    text = page(cells, columns, {"torch": "9"}, rows=5)
    assert "3 of 5 models have not been measured, and are no rows here yet." in text
    assert "**1 of 2 cells pass (50.0%)**: 2 models in 2 situations; 1 fail, 1 do not apply, 1 have not been" in text
    assert "| m | ✓ | **✗** |" in text
    assert "| n | · |  |" in text
    assert "| 1 | one | It must hold. | 1 | 0 | 1 |" in text
    assert "- m, two: `it 'broke'`" in text
    assert "- one: `not at all` (n)" in text
    assert "never" not in text


def test_the_page_says_what_was_measured() -> None:
    cells = [Cell(f"m{number}", "one", "pass", commit="abc1234") for number in range(3)]
    assert "At commit abc1234.\n" in page(cells, {"one": page}, {"torch": "9"})
    cells.append(Cell("n", "one", "fail", "why", commit="def5678"))
    assert "At commit abc1234; 1 cells again at def5678.\n" in page(cells, {"one": page}, {"torch": "9"})
    assert "At commit" not in page([Cell("m", "one", "pass")], {"one": page}, {"torch": "9"})


def test_many_models_are_no_single_line() -> None:
    cells = [Cell(f"model_{number}", "one", "n/a", "why") for number in range(100)]
    text = page(cells, {"one": page}, {"torch": "9"})
    told = text[text.index("- one: `why`") :]
    assert max(map(len, told.splitlines())) <= 120
    assert all(f"model_{number}" in told for number in range(100))


def test_results_are_kept_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert _matrix.read(path) == []
    _matrix.write(path, [Cell("m", "one", "fail", "why"), Cell("m", "two", "pass")])
    with path.open("a") as file:
        file.write('{"model": "m", "situation": "one", "status": "pass"}\n')
    assert {cell.key: cell.status for cell in _matrix.read(path)} == {("m", "one"): "pass", ("m", "two"): "pass"}


@pytest.mark.slow
def test_a_sample_of_the_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command, in a worker of its own, on one model; a second call measures nothing anew."""
    results = tmp_path / "results.jsonl"
    arguments = ["--results", str(results), "--models", "concat", "--workers", "1"]
    arguments += ["--situations", "undo", "state dict", "generate with cache"]
    assert matrix.main(arguments) == 0
    first = capsys.readouterr()
    assert "**2 of 2 cells pass (100.0%)**" in first.out
    assert "| concat | ✓ | ✓ | · |" in first.out
    assert first.err.count("concat") == 3
    assert matrix.main(arguments) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert not second.err
