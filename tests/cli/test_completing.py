"""What a shell offers for commands, presets, rules files and formats."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete

from regbn_surgery._cli.commands import cli
from regbn_surgery._rules.presets import preset_names


def offered(*words: str, incomplete: str = "") -> list[tuple[str, str]]:
    made = ShellComplete(cli, {}, "regbn-surgery", "_REGBN_SURGERY_COMPLETE")
    return [(item.type, item.value) for item in made.get_completions(list(words), incomplete)]


def plain(*values: str) -> list[tuple[str, str]]:
    return [("plain", value) for value in values]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "later.yml", "model.py"):
        (tmp_path / name).touch()


def test_there_are_presets_to_offer():
    assert {"late", "early"} <= set(preset_names())


@pytest.mark.parametrize(
    "words",
    [("show", "model.py:build"), ("plan", "model.py:build"), ("check",), ("diagnose", "model.py:build", "--rules")],
)
def test_rules_are_presets_and_files_of_this_folder(words):
    assert offered(*words) == plain(*preset_names(), "later.yml", "mine.yaml")
    assert offered(*words, incomplete="lat") == plain("late", "later.yml")
    assert offered(*words, incomplete="rules/la") == [("file", "rules/la")]
    assert offered(*words, incomplete="elsewhere") == [("file", "elsewhere")]


def test_presets_alone_where_only_a_preset_will_do():
    assert offered("presets") == plain(*preset_names())
    assert offered("presets", incomplete="mi") == []


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (("inspect", "m.py:f", "--format"), {"table", "tree", "json", "dot", "svg", "png", "html", "explorer"}),
        (("show", "m.py:f", "late", "--format"), {"diff", "table", "tree", "json", "html"}),
        (("plan", "m.py:f", "late", "--format"), {"text", "json", "yaml"}),
        (("completion",), {"bash", "zsh", "fish"}),
    ],
)
def test_choices(words, known):
    assert known <= {value for _, value in offered(*words)}


@pytest.mark.parametrize(
    "words",
    [
        ("inspect",),
        ("inspect", "m.py:f", "--inputs"),
        ("inspect", "m.py:f", "-o"),
        ("inspect", "m.py:f", "--checkpoint"),
        ("diagnose", "m.py:f", "--data"),
        ("init", "m.py:f", "-o"),
    ],
)
def test_files(words):
    assert offered(*words, incomplete="mo") == [("file", "mo")]


def test_nothing_is_known_of_transformers():
    assert offered("inspect", incomplete="hf:CL") == []


def test_commands_and_options():
    assert offered(incomplete="in") == plain("init", "inspect")
    assert ("plain", "--modality") in offered("inspect", "m.py:f", incomplete="--mo")


def test_by_way_of_the_shell_and_without_torch():
    code = (
        "import sys; from regbn_surgery.__main__ import main\ntry: main()\n"
        "except SystemExit: pass\nprint('torch' in sys.modules)"
    )
    words = {"COMP_WORDS": "regbn-surgery show model.py:build lat", "COMP_CWORD": "3"}
    environment = {**os.environ, **words, "_REGBN_SURGERY_COMPLETE": "bash_complete"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["plain,late", "plain,later.yml", "False"]
