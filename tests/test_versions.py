"""The page of versions keeps its rows in order and knows the promise of pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

import regbn_surgery

from .versions import FLOORS, SETS, counted, with_rows

ROOT = Path(regbn_surgery.__file__).parents[1]


def test_every_dependency_has_its_floor_in_the_set_of_floors() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = {line.split("==")[0]: line.split("==")[1].rstrip(".*") for line in (*FLOORS, SETS["floors"].wanted[0])}
    for line in project["dependencies"]:
        name, floor = line.split(">=")
        assert name in floors, line
        assert tuple(map(int, floors[name].split("."))) >= tuple(map(int, floor.split("."))), line


def test_rows_are_exchanged_and_kept_in_order() -> None:
    page = with_rows("", {"newest": "| newest | 3.11 | 2.14 | 2.4 | 5 | 1 |"})
    page = with_rows(page, {"floors": "| floors | 3.11 | 2.6 | 1.26 | 5 | 0 |"})
    page = with_rows(page, {"newest": "| newest | 3.11 | 2.15 | 2.4 | 6 | 0 |"})
    assert page.splitlines()[-2:] == [
        "| floors | 3.11 | 2.6 | 1.26 | 5 | 0 |",
        "| newest | 3.11 | 2.15 | 2.4 | 6 | 0 |",
    ]
    assert (counted("failed", "2 failed, 10 passed in 3s"), counted("error", "10 passed")) == (2, 0)
