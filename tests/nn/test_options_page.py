"""The page of RegBN's options is made from the code, and up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import regbn_surgery
from regbn_surgery.nn import _options_page
from regbn_surgery.nn.options import CHOICES, RegBNOptions

ROOT = Path(regbn_surgery.__file__).parents[1]


def test_the_page_is_up_to_date() -> None:
    """`python -m regbn_surgery.nn._options_page > docs/options.md` writes it."""
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == _options_page.page()
    command = [sys.executable, "-m", "regbn_surgery.nn._options_page"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == _options_page.page()


def test_every_option_has_one_row_with_its_choices() -> None:
    lines = [line for line in _options_page.page().splitlines() if line.startswith("| `")]
    rows = [line for line in lines if ":" not in line.split("`")[1]]
    assert sorted(row.split("`")[1] for row in rows) == sorted(RegBNOptions.names())
    for row in rows:
        for choice in CHOICES.get(row.split("`")[1], ()):
            assert f"`{choice}`" in row


def test_what_to_start_with_is_taken_by_the_options() -> None:
    for name, value, _ in _options_page.START:
        assert getattr(RegBNOptions(**{name: value}), name) == value
        assert getattr(RegBNOptions(), name) != value, "a default needs no advice"


def test_both_pages_say_the_same_of_strong_constraints_end_to_end() -> None:
    for name in ("options.md", "regbn.md"):
        text = " ".join((ROOT / "docs" / name).read_text(encoding="utf-8").split())
        assert _options_page.END_TO_END in text, name
