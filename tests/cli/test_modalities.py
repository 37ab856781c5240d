"""`--modality`: inputs, stretches of an axis, and outputs of modules, in the words in which reports print them."""

from __future__ import annotations

import json
import re

import click
import pytest

from regbn_surgery._cli.modalities import parse_modalities

MODEL = """
import torch
from torch import nn

class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 6), nn.Linear(5, 6), nn.Linear(12, 2)

    def forward(self, x):
        return self.head(torch.cat([self.a(x[..., :3]), self.b(x[..., 3:])], -1))

def build():
    return One(), (torch.ones(4, 8),)

def loader():
    torch.manual_seed(0)
    return [(torch.randn(16, 8),) for _ in range(3)]
"""


def cut(dim, start, stop, *inputs):
    return {"inputs": list(inputs), "slice": {"dim": dim, "range": [start, stop]}}


@pytest.mark.parametrize(
    ("values", "means"),
    [
        (["image=pixels"], {"image": ["pixels"]}),
        (["image=a, b", "text=ids", "image=c.*"], {"image": ["a", "b", "c.*"], "text": ["ids"]}),
        (["a=x[:, 0:8]", "b=x[:,8:]"], {"a": cut(1, 0, 8, "x"), "b": cut(1, 8, None, "x")}),
        (["a=x[:3]"], {"a": cut(0, 0, 3, "x")}),
        (["a=x[..., 0:3],y[..., 0:3]"], {"a": cut(-1, 0, 3, "x", "y")}),
        (["a=x[..., 2:5, :]"], {"a": cut(-2, 2, 5, "x")}),
        (["a=x[:, 1:2, ...]"], {"a": cut(1, 1, 2, "x")}),
        (["t=module:text.**", "t=module:heads.*"], {"t": {"modules": ["text.**", "heads.*"]}}),
        ([r"a=re:x\.[01:]"], {"a": [r"re:x\.[01:]"]}),
    ],
)
def test_what_it_means(values, means):
    assert parse_modalities(values) == means


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["image"], "write NAME=INPUT"),
        (["=x"], "write NAME=INPUT"),
        (["image="], "write NAME=INPUT"),
        (["image= , "], "write NAME=INPUT"),
        (["a=x[0"], "write NAME=INPUT"),
        (["a=[0:3]"], "write NAME=INPUT"),
        (["a=x[0]"], "exactly one axis can be sliced"),
        (["a=x[:, :]"], "exactly one axis can be sliced"),
        (["a=x[0:1, 0:1]"], "exactly one axis can be sliced"),
        (["a=x[-3:]"], "exactly one axis can be sliced"),
        (["a=x[..., 0:3, ...]"], "exactly one axis can be sliced"),
        (["a=x[3:3]"], "the slice from 3 to 3 is empty"),
        (["a=x[0:3]", "a=y"], "must have the same slice"),
        (["a=module:"], "which module"),
        (["a=module:text,ids"], "inputs and modules"),
    ],
)
def test_what_is_none(values, says):
    with pytest.raises(click.BadParameter, match=says):
        parse_modalities(values)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sliced.py").write_text(MODEL)


STRETCHES = ("--modality", "low=x[:, 0:3]", "--modality", "high=x[..., 3:]")


def test_stretches_reach_the_model_and_are_printed_as_they_are_given(run, place):
    result = run("inspect", "sliced.py:build", *STRETCHES)
    assert result.exit_code == 0, result.stderr
    assert "modalities: low (x[:, 0:3]), high (x[:, 3:])" in result.stdout
    assert "cat" in result.stdout


def test_what_comes_out_of_modules(run, place):
    modules = ("--modality", "low=module:a", "--modality", "high=module:b", "--format", "json")
    result = run("inspect", "sliced.py:build", *modules)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["modalities"] == {"low": ["module:a"], "high": ["module:b"]}
    assert [point["id"] for point in found["fusion_points"]] == ["cat"]


def test_rules_are_begun_and_data_measured_with_them(run, place):
    assert run("init", "sliced.py:build", *STRETCHES, "-o", "rules.yaml").exit_code == 0
    result = run("check", "rules.yaml", "sliced.py:build")
    assert result.exit_code == 0, result.stderr
    assert "1 of 1 fusion point normalised" in result.stdout
    measured = run("diagnose", "sliced.py:build", "--data", "sliced.py:loader", *STRETCHES, "--format", "json")
    assert measured.exit_code == 0, measured.stderr
    assert len(json.loads(measured.stdout)["sites"]) == 1


def test_a_model_with_one_input_is_told_what_to_do(run, place):
    result = run("inspect", "sliced.py:build")
    assert result.exit_code == 1
    assert "name them by --modality" in result.stderr


@pytest.mark.parametrize(
    ("modality", "says"),
    [("low=module:aa", "Did you mean 'a'"), ("low=x[:, :, 0:3]", "along axis 2"), ("low=y", "does not|do not have")],
)
def test_what_the_model_does_not_have(run, place, modality, says):
    result = run("inspect", "sliced.py:build", "--modality", modality)
    assert result.exit_code == 2
    assert re.search(says, result.stderr)
