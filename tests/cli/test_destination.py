"""Where a command writes: looked at before the work, and nothing is overwritten that somebody may have edited."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

from regbn_surgery._cli import destination
from regbn_surgery._cli.commands import cli

from .test_commands import MODEL, RULES

#: Every command that writes a file, with an ending that it can write.
WRITING = {
    "inspect": (["inspect", MODEL], "json"),
    "show": (["show", MODEL, "r.yaml"], "txt"),
    "plan": (["plan", MODEL, "r.yaml"], "json"),
    "init": (["init", MODEL], "yaml"),
    "verify": (["verify", MODEL, "r.yaml"], "txt"),
    "summary": (["summary", MODEL, "r.yaml"], "json"),
    "diagnose": (["diagnose", MODEL, "--data", "none.py:x"], "json"),
    "schema": (["schema"], "json"),
    "presets": (["presets", "late"], "yaml"),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RULES)
    return tmp_path


def test_every_command_with_an_output_is_here():
    writing = {
        name for name, command in cli.commands.items() if any("--output" in option.opts for option in command.params)
    }
    assert writing == {*WRITING, "sweep"}  # which writes a folder, and is tested beside its own tests


@pytest.mark.parametrize("name", WRITING)
class TestBeforeTheWork:
    """`MODEL` stands for a model that would be loaded: the library behind notes that nobody asked it."""

    def refused(self, name, run, library, place, path, *more):
        command, _ = WRITING[name]
        result = run(*command, "-o", path, *more)
        assert result.exit_code == 2, result.output
        assert library.asked == []
        assert result.stdout == ""
        return result.stderr

    def test_a_file_is_not_overwritten(self, name, run, library, place):
        path = f"mine.{WRITING[name][1]}"
        (place / path).write_text("edited")
        assert f"-o {path}: the file exists; --force overwrites it" in self.refused(name, run, library, place, path)
        assert (place / path).read_text() == "edited"

    def test_a_folder_that_is_not_there(self, name, run, library, place):
        told = self.refused(name, run, library, place, f"no/mine.{WRITING[name][1]}")
        assert "the folder no does not exist" in told

    def test_a_folder_in_place_of_a_file(self, name, run, library, place):
        (place / "folder").mkdir()
        assert "this is a folder" in self.refused(name, run, library, place, "folder")

    def test_an_unknown_ending(self, name, run, library, place):
        told = self.refused(name, run, library, place, "report.pdf")
        assert "unknown ending .pdf; use ." in told
        assert f".{WRITING[name][1]}" in told


def test_a_place_without_permission(monkeypatch, place):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    result = CliRunner().invoke(cli, ["schema", "-o", "s.json"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no permission" in result.stderr


def test_force_overwrites(run, place):
    (place / "s.json").write_text("old")
    assert run("schema", "-o", "s.json", "--force").exit_code == 0
    assert "$schema" in (place / "s.json").read_text()


def test_an_ending_of_another_format_is_refused(run, library, place):
    result = run("inspect", MODEL, "--format", "html", "-o", "x.json")
    assert result.exit_code == 2
    assert "unknown ending .json with --format html; use .html, .htm" in result.stderr


@pytest.mark.parametrize(
    ("name", "forms", "form"),
    [
        ("x.svg", ("table", "json", "svg"), "svg"),
        ("x.svg", ("text", "json"), "text"),
        ("x.JSON", ("table", "json", "explorer"), "json"),
        ("x.gv", ("table", "dot"), "dot"),
        ("x.patch", ("diff", "table"), "diff"),
        ("x.txt", ("diff", "table"), "table"),
        ("x", ("diff", "table"), "diff"),
        ("-", ("diff", "table"), "diff"),
        (None, ("diff", "table"), "diff"),
    ],
)
def test_the_ending_decides(name, forms, form):
    assert destination._form_of(name, forms) == form


def test_a_picture_that_nothing_can_draw_is_refused_before_the_work(run, library, place, monkeypatch):
    monkeypatch.setattr(destination.importlib.util, "find_spec", lambda name: None)
    result = run("inspect", MODEL, "-o", "x.svg")
    assert result.exit_code == 2
    assert "needs pygraphviz" in result.stderr
    assert "--format dot" in result.stderr
    assert library.asked == []


class TestQuiet:
    def test_no_messages(self, run, place):
        assert "wrote s.json" in run("schema", "-o", "s.json").stderr
        result = run("schema", "-o", "s.json", "--force", "--quiet")
        assert (result.exit_code, result.output) == (0, "")

    def test_results_and_errors_stay(self, run, library, place):
        assert "TwoBranch" in run("inspect", MODEL, "-q").stdout
        assert "error: " in run("inspect", "nowhere.py:build", "-q").stderr

    @pytest.mark.parametrize("name", cli.commands)
    def test_every_command_can_be_quiet(self, run, name):
        assert "--quiet" in run(name, "--help").stdout
