"""Commands on a model that contains RegBN already, on its checkpoints, and `--modality` for rules that name none."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from regbn_surgery import regbnify, save_regbn

MODEL = """
import torch
from torch import nn
import regbn_surgery
from tests.cli.with_regbn_model import RULES, Two, example

def plain():
    torch.manual_seed(0)
    return Two(), example()

def rewritten():
    model, given = plain()
    return regbn_surgery.regbnify(model, RULES, given), given

class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = rewritten()[0]

def parent():
    return Parent(), example()

def loader():
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        y = torch.randn(16, 4, generator=generator)
        yield y + torch.randn(16, 4, generator=generator), y
"""


@pytest.fixture
def here(run: Any, tmp_path: Any) -> Any:
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "late.yaml").write_text("version: 1\nrules: [{id: late, match: {kind: concat}, normalize: x}]\n")
    return run


@pytest.mark.parametrize("build", ["rewritten", "parent"])
def test_verify_without_rules(here: Any, build: str) -> None:
    result = here("verify", f"mine.py:{build}", "--data", "mine.py:loader", "--calls", "1")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("regbn_late: ran 1 x, f is x, g is y, as the rule says") == 2
    assert "regbnify" not in result.stderr


@pytest.mark.parametrize("build", ["rewritten", "parent"])
def test_summary_without_rules(here: Any, build: str) -> None:
    result = here("summary", f"mine.py:{build}", "--calls", "1", "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert "regbn_late" in result.stdout


@pytest.mark.parametrize("build", ["rewritten", "parent"])
def test_diagnose_without_rules(here: Any, build: str) -> None:
    result = here("diagnose", f"mine.py:{build}", "--data", "mine.py:loader", "--format", "json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["as_it_is"] is True
    assert found["sites"][0]["after"] is not None
    assert "init" not in result.stderr


@pytest.mark.parametrize("command", ["verify", "summary"])
def test_rules_are_either_given_or_there(here: Any, command: str) -> None:
    result = here(command, "mine.py:plain")
    assert result.exit_code == 2
    assert "Two carries no RegBN put in by regbnify. Name a rules file or a preset" in " ".join(result.stderr.split())
    result = here(command, "mine.py:rewritten", "late.yaml")
    assert result.exit_code == 2
    assert "Two contains RegBN already: leave RULES out" in " ".join(result.stderr.split())


def test_diagnose_with_rules_says_what_to_leave_out(here: Any) -> None:
    result = here("diagnose", "mine.py:rewritten", "--data", "mine.py:loader", "--rules", "late.yaml")
    told = " ".join(result.stderr.split())
    assert result.exit_code == 2
    assert "already contains RegBN (regbn_late). Measure it as it is, without rules" in told
    assert "Several rules" not in told


@pytest.fixture
def saved(tmp_path: Any) -> Any:
    from tests.cli.with_regbn_model import RULES, Two, example

    model = regbnify(Two(), RULES, example())
    save_regbn(model, tmp_path / "folder")
    torch.save(model.state_dict(), tmp_path / "alone.pt")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "folder" / "other.pt")
    return model


def test_the_weights_of_a_folder_come_with_its_recipe(here: Any, saved: Any) -> None:
    result = here("verify", "mine.py:plain", "--checkpoint", "folder/model.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "regbn_late: ran 1 x" in result.stdout
    result = here("diagnose", "mine.py:plain", "--data", "mine.py:loader", "--checkpoint", "folder/model.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "as it is" in result.stdout


@pytest.mark.parametrize(("file", "what"), [("alone.pt", "load_regbn(model, folder)"), ("folder/other.pt", "'folder'")])
@pytest.mark.parametrize("command", [("inspect",), ("plan", "late.yaml"), ("verify",)])
def test_a_file_with_the_state_of_regbn_says_so(here: Any, saved: Any, file: str, what: str, command: Any) -> None:
    result = here(command[0], "mine.py:plain", *command[1:], "--checkpoint", file)
    told = " ".join(result.stderr.split())
    assert result.exit_code == 2
    assert f"'{file}' belongs to a model with RegBN (`regbn_late." in told
    assert what in told
    assert "from_pretrained" not in told


def test_such_a_file_fits_the_model_that_has_regbn(here: Any, saved: Any) -> None:
    assert here("verify", "mine.py:rewritten", "--checkpoint", "alone.pt").exit_code == 0


@pytest.mark.parametrize("command", ["plan", "show", "verify", "summary", "check"])
def test_modalities_for_rules_that_name_none(here: Any, command: str) -> None:
    words = ["mine.py:plain", "late"]
    result = here(
        command, *(words[::-1] if command == "check" else words), "--modality", "left=x", "--modality", "right=y"
    )
    assert result.exit_code == 0, result.stderr
    if command == "plan":
        assert "left" in result.stdout
        assert "--modality left=x" in " ".join(result.stderr.split())  # and the next command knows it, too


def test_rules_that_name_modalities_say_where(here: Any, tmp_path: Any) -> None:
    (tmp_path / "named.yaml").write_text(
        "version: 1\nmodalities: {a: [x], b: [y]}\nrules: [{id: late, match: {kind: concat}, normalize: a}]\n"
    )
    result = here("plan", "mine.py:plain", "named.yaml", "--modality", "left=x")
    assert result.exit_code == 2
    assert "named.yaml:2:1: the rules name the modalities themselves (a, b)" in " ".join(result.stderr.split())


def test_modalities_that_do_not_fit_the_rules(here: Any) -> None:
    result = here("plan", "mine.py:plain", "late.yaml", "--modality", "left=x", "--modality", "right=y")
    assert result.exit_code == 2
    assert "x" in result.stderr
    assert "Traceback" not in result.stderr
