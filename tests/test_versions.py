"""The page of versions keeps its rows in order and knows the promise of pyproject.toml."""

from __future__ import annotations

import tomllib
import warnings
from pathlib import Path

import pytest
import torch

import regbn_surgery
from regbn_surgery import RegBN, RegBNWarning, _untested, load_regbn, save_regbn

from . import versions
from .surgery.models import Late, build, operate, vectors
from .versions import FLOORS, SETS, TABLE, counted, with_rows

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


def test_what_is_newer_than_known_is_told_once_and_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "__version__", "3.0.0+cpu")
    monkeypatch.setattr(_untested, "_told", set())
    with pytest.warns(
        RegBNWarning, match=r"torch 3\.0 is newer than .* \(up to torch 2\.\d+\)\. The rewritten model is compared"
    ):
        model = operate(build(Late), vectors())
    assert any(isinstance(module, RegBN) for module in model.modules())
    save_regbn(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_regbn(build(Late), tmp_path)
        operate(build(Late), vectors())


def test_what_is_known_is_not_told(recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_untested, "_told", set())
    operate(build(Late), vectors())
    assert not [one for one in recwarn if "newer than" in str(one.message)]


def test_what_is_known_is_what_the_page_has_as_passed() -> None:
    """Nothing is promised that no row of docs/versions.md shows without a failure."""
    rows = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if line.endswith("| 0 |")]
    assert {row[0] for row in rows} == set(SETS)
    newest = {place: max(tuple(map(int, row[place].split("+")[0].split(".")[:2])) for row in rows) for place in (1, 2)}
    assert {1: _untested.TESTED["Python"], 2: _untested.TESTED["torch"]} == newest


# -- the command, on stand-ins for environments ------------------------------------------------------------------------


def stand_in(folder: Path, tests: str, code: int, imports: int = 0) -> str:
    """A program that answers as the Python of an environment would: what its versions are, and how the tests went."""
    program = folder / f"python{code}{imports}"
    asked = f'if [ "$1" = -c ]; then echo 3.11.7 2.6.0 1.26.4 4.57.6; exit {imports}; fi'
    program.write_text(f"#!/bin/sh\n{asked}\necho '{tests}'\nexit {code}\n")
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    page = tmp_path / "versions.md"
    monkeypatch.setattr(versions, "TABLE", page)
    return page


def test_an_environment_that_is_there_gives_its_row(table: Path, tmp_path: Path) -> None:
    python = stand_in(tmp_path, "5 passed, 2 skipped in 3s", 0)
    assert versions.main(["--python", f"floors={python}"]) == 0
    (row,) = [line for line in table.read_text().splitlines() if line.startswith("| floors")]
    assert row.startswith("| floors | 3.11.7 | 2.6.0 | 1.26.4 | 4.57.6 | ")
    assert row.endswith(" | 5 | 0 |")


def test_a_test_that_fails_is_counted_and_said(table: Path, tmp_path: Path) -> None:
    python = stand_in(tmp_path, "FAILED tests/a.py::b\n1 failed, 5 passed in 3s", 1)
    assert versions.main(["--python", f"newest={python}", "newest"]) == 1
    assert table.read_text().splitlines()[-1].endswith("| 5 | 1 |")


@pytest.mark.parametrize(("tests", "code", "imports"), [("no tests ran", 5, 0), ("killed", 137, 0), ("1 passed", 0, 1)])
def test_a_run_that_broke_off_is_no_success(
    table: Path, tmp_path: Path, tests: str, code: int, imports: int, capsys: pytest.CaptureFixture[str]
) -> None:
    python = stand_in(tmp_path, tests, code, imports)
    assert versions.main(["--python", f"floors={python}", "floors"]) == 1
    assert "floors: NOT TESTED" in capsys.readouterr().out
    assert not table.exists()


@pytest.mark.parametrize("given", ["floors", "oldest=python3", "floors=/nowhere/python"])
def test_an_environment_that_cannot_be_is_a_usage_error(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        versions.main(["--python", given])
    assert "NAME=PATH is wanted" in capsys.readouterr().err


def test_the_help_shows_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        versions.main(["--help"])
    examples = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    python tests/")]
    assert len(examples) == 2
    assert {line.split()[-1] for line in examples} <= set(SETS)
