"""How the options that every MODEL shares are read, and what they do."""

from __future__ import annotations

import json

import click
import pytest
import torch

from regbn_surgery._cli.loading import ModelNotLoadedError
from regbn_surgery._cli.options import ModelRequest, TensorSpec, parse_tensor

MODEL = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.left, self.right = nn.Linear(4, width), nn.Linear(5, width)

    def forward(self, x, y):
        return torch.cat([self.left(x), self.right(y)], dim=1)

def samples(batch):
    return torch.ones(batch, 4), torch.ones(batch, 5)

def three():
    return samples(3)

value = samples(2)

def broken():
    raise OSError("no such data")
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "optioned.py").write_text(MODEL)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "name", "spec"),
    [
        ("image=f32[8,3,32,32]", "image", TensorSpec((8, 3, 32, 32), "float32")),
        ("ids=int64[8,7]<100", "ids", TensorSpec((8, 7), "int64", (0, 100))),
        ("batch.audio=BF16[2, 5]", "batch.audio", TensorSpec((2, 5), "bfloat16")),
        ("flag=bool[2]", "flag", TensorSpec((2,), "bool")),
        ("scale=float64[]", "scale", TensorSpec((), "float64")),
    ],
)
def test_a_tensor_in_words(text, name, spec):
    assert parse_tensor(text) == (name, spec)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image", "write NAME=TYPE[SHAPE]"),
        ("image=f32", "write NAME=TYPE[SHAPE]"),
        ("image=f32[2,-1]", "write NAME=TYPE[SHAPE]"),
        ("image=f33[2]", "'f33' is no type of tensor"),
        ("image=f32[2,,3]", "a size is missing"),
        ("image=f32[2]<5", "bounds whole numbers"),
        ("ids=int64[2]<0", "bounds whole numbers"),
    ],
)
def test_a_tensor_that_cannot_be_read(text, says):
    with pytest.raises(click.BadParameter, match=says.replace("[", r"\[")):
        parse_tensor(text)


def test_random_inputs_by_name_reach_the_model(run, place):
    result = run("inspect", "optioned.py:Two", "--input", "x=f32[4,4]", "--input", "y=f32[4,5]", "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert [o["shape"] for o in json.loads(result.stdout)["fusion_points"][0]["operands"]] == [[2, 8], [2, 8]]


@pytest.mark.parametrize("arguments", ['{"width": 6}', "[6]"])
def test_model_arguments(run, place, arguments):
    result = run("inspect", "optioned.py:Two", "--model-args", arguments, "--inputs", "optioned.py:samples")
    assert "2×6" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model-args", "{"], "is not JSON"),
        (["--model-args", "3"], "a JSON object"),
        (["--model-args", '{"depth": 1}'], "--model-args"),
        (["--inputs", "optioned.py:three", "--input", "x.deep=f32[2]"], "the input `x.deep`: the example has a Tensor"),
        (["--input", "x=f32[2]", "--input", "x=f32[2]"], "given twice"),
        (["--inputs", "three"], "does not say where the inputs are"),
        (["--inputs", "optioned.py:broken"], "making the inputs 'optioned.py:broken' failed: OSError: no such data"),
        (["--checkpoint", "none.pt"], "does not exist"),
    ],
)
def test_options_that_cannot_be_used(run, place, arguments, says):
    result = run("inspect", "optioned.py:Two", *arguments)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["samples", "three", "value"])
def test_inputs_of_each_form(place, name):
    _, inputs = ModelRequest("optioned.py:Two", inputs_from=f"optioned.py:{name}").load()
    given = inputs(3) if callable(inputs) else inputs
    assert [tensor.shape[1] for tensor in given] == [4, 5]
    assert callable(inputs) == (name == "samples")


class TestCheckpoint:
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_weights_are_loaded(self, place, wrapped):
        state = {
            name: torch.full_like(p, 7) for name, p in ModelRequest("optioned.py:Two").load()[0].named_parameters()
        }
        torch.save({"state_dict": state, "epoch": 3} if wrapped else state, "weights.pt")
        model, _ = ModelRequest("optioned.py:Two", checkpoint="weights.pt").load()
        assert all((p == 7).all() for p in model.parameters())

    def test_safetensors(self, place):
        safetensors = pytest.importorskip("safetensors.torch")
        state = {
            name: torch.full_like(p, 7) for name, p in ModelRequest("optioned.py:Two").load()[0].named_parameters()
        }
        safetensors.save_file(state, "weights.safetensors")
        model, _ = ModelRequest("optioned.py:Two", checkpoint="weights.safetensors").load()
        assert all((p == 7).all() for p in model.parameters())

    def test_code_in_a_file_is_not_run(self, place):
        class Trap:
            def __reduce__(self):
                return (open, ("trapped", "w"))

        torch.save({"x": Trap()}, "trap.pt")
        with pytest.raises(ModelNotLoadedError, match=r"holds more than weights \(`\w*\.?open`\)") as caught:
            ModelRequest("optioned.py:Two", checkpoint="trap.pt").load()
        assert "weights_only" not in str(caught.value)
        assert not (place / "trapped").exists()

    def test_what_is_no_checkpoint_is_not_advised_to_be_loaded_all_the_same(self, place):
        with pytest.raises(ModelNotLoadedError, match="or is not a checkpoint; save the state dict") as caught:
            ModelRequest("optioned.py:Two", checkpoint="optioned.py").load()
        assert "weights_only" not in str(caught.value)

    def test_keys_that_do_not_fit_are_named(self, place):
        torch.save({"left.weight": torch.zeros(8, 4), "extra": torch.zeros(1)}, "other.pt")
        with pytest.raises(ModelNotLoadedError, match=r"does not fit Two[\s\S]*extra"):
            ModelRequest("optioned.py:Two", checkpoint="other.pt").load()

    def test_a_file_that_is_none(self, place):
        (place / "text.pt").write_text("hello")
        with pytest.raises(ModelNotLoadedError, match="text"):
            ModelRequest("optioned.py:Two", checkpoint="text.pt").load()


def test_a_model_without_inputs_is_told_the_options(run, place):
    result = run("inspect", "optioned.py:Two")
    assert result.exit_code == 2
    assert "--input NAME=f32[8,3,32,32]" in result.stderr
