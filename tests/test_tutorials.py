"""The tutorials run from top to bottom in an empty folder, and print what they show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from regbn_surgery._rules import preset_names
from regbn_surgery._types import KINDS

from .snippets import ROOT, comparable, read_blocks, run_notebook, run_page, working_folder

DOCS = ROOT / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial(path: Path, tmp_path: Path) -> None:
    if path.stem == "vision_language":
        pytest.importorskip("transformers", reason="this tutorial needs transformers")
        pytest.importorskip("peft", reason="this tutorial needs peft")
    page = path.read_text(encoding="utf-8")
    outputs = [block for block in read_blocks(page) if block.is_output]
    with working_folder(tmp_path):
        shown = list(run_page(page))
    assert [item.block for item in shown] == outputs, "each output that the page shows was compared"
    for item in shown:
        assert comparable(item.printed) == comparable(item.block.content)


def test_they_are_all_there() -> None:
    assert {path.stem for path in TUTORIALS} == {"first_model", "rules_to_training", "vision_language", "many_gpus"}


def test_every_preset_is_in_the_table_of_architectures() -> None:
    rows = (DOCS / "presets.md").read_text(encoding="utf-8").splitlines()
    named = {name for row in rows if row.startswith("|") for name in re.findall(r"`([^`]+)`", row.split("|")[3])}
    assert set(preset_names()) <= named
    kinds = {name for row in rows if row.startswith("|") for name in re.findall(r"`([^`]+)`", row.split("|")[2])}
    assert kinds <= set(KINDS)


def test_the_glossary_is_short() -> None:
    words = re.findall(r"^\*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert 0 < len(words) <= 10


@pytest.mark.parametrize("path", sorted((DOCS / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path: Path, tmp_path: Path) -> None:
    """Its cells run in order and print what is stored with them; what is stored is text, and small."""
    if path.stem == "clip":
        pytest.importorskip("transformers", reason="this notebook needs transformers")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert len(path.read_bytes()) < 20_000
    with working_folder(tmp_path):
        for cell, printed in run_notebook(notebook):
            stored = "".join(text for output in cell["outputs"] for text in output["text"])
            assert comparable(printed) == comparable(stored), "python -m tests.snippets writes the outputs anew"
