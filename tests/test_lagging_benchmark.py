"""The benchmark behind the table of docs/regbn.md on `update_regbn`: the command itself, small."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import lagging_projection

    yield lagging_projection
    for name in ("lagging_projection", "what_is_removed"):
        sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore::regbn_surgery.RegBNWarning")
def test_the_table_has_a_row_for_each(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "SAMPLES", 512)
    monkeypatch.setattr(benchmark, "HELD_OUT", 600)
    monkeypatch.setattr(benchmark, "OPTIONS", {"gcv": {"constraint": "gcv"}})
    benchmark.main(["--epochs", "3", "--seeds", "1"])
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[:2] for line in lines] == [["| learned", "gcv"], ["| fixed", "gcv"]]
    f, trained, updated = (float(cell.rstrip(" |")) for cell in lines[0][2:])
    assert updated < trained - 0.1
    assert updated < f / 2
