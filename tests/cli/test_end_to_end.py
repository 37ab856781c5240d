"""The command line on a real model, with the real library behind it."""

from __future__ import annotations

import json
import re

import pytest

MODEL = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 8), nn.Linear(5, 6), nn.Linear(14, 2)

    def forward(self, x, y):
        return self.head(torch.cat([self.left(x), self.right(y)], dim=1))

def build(batch=4):
    return Two(), (torch.rand(batch, 4), torch.rand(batch, 5))

def bare():
    return Two()

def single():
    return build(1)

def unfitting():
    return Two(), (torch.rand(2, 4), torch.rand(2, 9))

def lonely():
    return nn.Linear(3, 3), (torch.rand(4, 3),)
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "end_to_end_model.py").write_text(MODEL)
    (tmp_path / "late.yaml").write_text(
        "version: 1\n"
        "inputs: {x: {shape: [4, 4]}, y: {shape: [4, 5]}}\n"
        "rules: [{id: late, match: {kind: concat}, normalize: x, regbn: {affine: true}}]\n"
    )
    (tmp_path / "never.yaml").write_text("version: 1\nrules: [{id: never, match: {kind: scatter}, normalize: x}]\n")
    return tmp_path


def test_inspect(run, files):
    found = json.loads(run("inspect", "end_to_end_model.py:build", "--format", "json").stdout)
    (point,) = found["fusion_points"]
    assert (found["model"], point["kind"], point["level"], point["owner"]) == ("Two", "concat", "late", "")
    assert [operand["home"] for operand in point["operands"]] == [["x"], ["y"]]
    assert point["source"].endswith("end_to_end_model.py:11")
    table = run("inspect", "end_to_end_model.py:build", "--modality", "a=x", "--modality", "b=y").stdout
    assert "modalities: a (x), b (y)" in table
    assert "W 6×8" in table


@pytest.mark.parametrize("factory", ["build", "bare", "Two"])
def test_show(run, files, factory):
    result = run("show", f"end_to_end_model.py:{factory}", "late.yaml")
    assert result.exit_code == 0, result.stderr
    assert "f x: 8 channels" in result.stdout
    assert "6×8, 0.2 KiB" in result.stdout
    assert any(line.startswith("+") and "_regbn.call(0, torch.cat" in line for line in result.stdout.splitlines())


def notes_of(stdout: str) -> list[str]:
    """Every note of a table, in its order."""
    return re.findall(r"^ (RB\d{3} .*)$", stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ("{id: late, match: {kind: concat}, normalize: x}", ["RB118"]),
        ("{id: late, match: {kind: concat}, normalize: x}, {id: no, match: {kind: sum}, normalize: x}", ["RB101"]),
    ],
)
def test_plan_and_show_have_the_same_notes(run, files, rules, wanted):
    (files / "same.yaml").write_text(f"version: 1\nstrict: warn\nrules: [{rules}]\n")
    (files / "independent.py").write_text(
        "import torch\nfrom end_to_end_model import Two\n\n"
        "def build():\n    torch.manual_seed(0)\n    model = Two()\n"
        "    return model, (torch.randn(24, 4), torch.randn(24, 5))\n"
    )
    told = {}
    for command in ("plan", "show"):
        result = run(command, "independent.py:build", "same.yaml", "--verbose")
        assert result.exit_code == 0, result.stderr
        told[command] = notes_of(result.stdout), [t for t in result.stderr.splitlines() if t.startswith("warning")]
    assert told["plan"] == told["show"]
    assert set(wanted) <= {note[:5] for note in told["show"][0]}, told


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["inspect", "end_to_end_model.py:single"], 2, "batch size 1"),
        (["inspect", "end_to_end_model.py:unfitting"], 2, "end_to_end_model.py:11"),
        (["inspect", "end_to_end_model.py:bare"], 2, "example"),
        (["inspect", "end_to_end_model.py:build", "--modality", "a=z"], 2, "z"),
        (["inspect", "end_to_end_model.py:lonely"], 1, "no fusion point"),
        (
            ["show", "end_to_end_model.py:build", "never.yaml"],
            1,
            "never.yaml:2:35: rule `never` matches no fusion point",
        ),
    ],
)
def test_bad_input_is_one_clear_message(run, files, arguments, code, says):
    result = run(*arguments)
    assert result.exit_code == code
    assert says in result.stderr
    assert "Traceback" not in result.stderr
