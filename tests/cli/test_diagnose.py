"""`diagnose` from the shell; what it measures is tested in `tests/test_probe.py`."""

from __future__ import annotations

import json

DATA = """
import torch
from tests.test_probe import Two, batches

def data():
    return batches(0.8)

def model():
    return Two()

nothing = 3

class Loose(Two):
    def forward(self, x, y, given=None):
        return super().forward(x, y)

def loose():
    return Loose()

def labelled():
    for x, y in batches(0.8):
        yield x, y, torch.zeros(len(x))

def other():
    yield from batches(0.8, 1)
    yield torch.ones(8, 99), torch.ones(8, 98)
"""
RULES = "version: 1\nrules: [{id: late, match: {kind: concat}, normalize: x}]\n"
COMMAND = ("diagnose", "probe_data.py:model", "--data", "probe_data.py:data", "--batches", "3")


def test_json_without_rules(run, tmp_path):
    (tmp_path / "probe_data.py").write_text(DATA)
    result = run(*COMMAND, "--format", "json")
    assert result.exit_code == 0, result.stderr
    (site,) = json.loads(result.stdout)["sites"]
    assert (site["fusion_point"], site["samples"], site["after"]) == ("cat", 96, None)


def test_table_with_rules(run, tmp_path):
    (tmp_path / "probe_data.py").write_text(DATA)
    (tmp_path / "late.yaml").write_text(RULES)
    result = run(*COMMAND, "--rules", "late.yaml")
    assert result.exit_code == 0, result.stderr
    assert "regbn_late" in result.stdout
    assert "linear CKA after" in result.stdout


def test_data_that_are_none(run, tmp_path):
    (tmp_path / "probe_data.py").write_text(DATA)
    result = run("diagnose", "probe_data.py:model", "--data", "probe_data.py:nothing")
    assert result.exit_code == 2
    assert "cannot be iterated" in result.stderr


def test_a_batch_that_the_model_does_not_take_is_named(run, tmp_path):
    (tmp_path / "probe_data.py").write_text(DATA)
    result = run("diagnose", "probe_data.py:model", "--data", "probe_data.py:other")
    assert result.exit_code == 2
    assert "Two could not be run on batch 2 of the data" in result.stderr
    assert "[8, 99]" in result.stderr


def test_rules_name_the_modalities(run, tmp_path):
    (tmp_path / "late.yaml").write_text(RULES + "modalities: {x: [x], y: [y]}\n")
    result = run("diagnose", "x:y", "--data", "x:z", "--rules", "late.yaml", "--modality", "a=x")
    assert result.exit_code == 2
    assert "the rules name the modalities" in result.stderr


def test_a_warning_is_a_line_without_a_place_in_the_package(run, tmp_path):
    (tmp_path / "probe_data.py").write_text(DATA)
    result = run("diagnose", "probe_data.py:loose", "--data", "probe_data.py:labelled", "--batches", "3")
    assert result.exit_code == 0, result.stderr
    assert "warning: RB417 a batch of 3 items was passed as" in result.stderr
    assert "_given_batches.py" not in result.stderr
