"""Every way in which a model file can be wrong gets one message that names the place and the remedy."""

from __future__ import annotations

import sys

import pytest
from torch import nn

from regbn_surgery._cli.loading import ModelNotLoadedError, load_model

GOOD = """
from torch import nn
import helper

class Net(nn.Module):
    pass

class Needy(nn.Module):
    def __init__(self, width):
        super().__init__()

def model():
    return Net()

def pair():
    return Net(), {"x": helper.VALUE}

def boom():
    raise ValueError("too small")

def forgot():
    return Net

def triple():
    return Net(), 1, 2

def nothing():
    pass

def leave():
    raise SystemExit(3)

number = 7
instance = Net()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "zoo_file.py").write_text(GOOD)
    (tmp_path / "helper.py").write_text("VALUE = 5\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("zoo_file", "helper", "broken", "syntax", "quits", "pack", "pack.inner"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("place", ["zoo_file.py", "zoo_file", "{folder}/zoo_file.py"])
def test_file_and_module_names(folder, place):
    place = place.format(folder=folder)
    assert isinstance(load_model(f"{place}:model")[0], nn.Module)
    assert load_model(f"{place}:pair")[1] == {"x": 5}
    assert type(load_model(f"{place}:Net")[0]).__name__ == "Net"
    assert load_model(f"{place}:instance")[1] is None


def test_a_file_named_like_a_loaded_module_does_not_replace_it(folder):
    import json

    (folder / "json.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(1, 1)\n")
    assert isinstance(load_model(f"{folder}/json.py:build")[0], nn.Linear)
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("zoo_file.py", "does not say where the model is: write `package.module:factory`"),
        (":build", "does not say where"),
        ("zoo_file.py:", "does not say where"),
        ("nowhere.py:build", "the file 'nowhere.py' does not exist"),
        ("nowhere_at_all:build", "there is no module 'nowhere_at_all'"),
        ("zoo_file.nothing:build", "no module 'zoo_file.nothing'"),
        ("zoo_file.py:modle", "has no `modle`; did you mean `model`?"),
        ("zoo_file.py:number", "is a int, not a function or class"),
        ("zoo_file.py:boom", "ValueError: too small"),
        ("zoo_file.py:boom", "zoo_file.py:19)"),
        ("zoo_file.py:forgot", "returns the class Net"),
        ("zoo_file.py:triple", "it returns a tuple of 3"),
        ("zoo_file.py:nothing", "it returns NoneType"),
        ("zoo_file.py:leave", "SystemExit: 3"),
        ("zoo_file.py:Needy", "it was called without arguments"),
        ("broken.py:build", "importing 'broken.py' failed: ModuleNotFoundError: No module named 'not_there'"),
        ("broken.py:build", "broken.py:2)"),
        ("broken:build", "importing 'broken' failed: ModuleNotFoundError: No module named 'not_there'"),
        ("syntax.py:build", "importing 'syntax.py' failed: SyntaxError"),
        ("quits.py:build", "SystemExit"),
    ],
)
def test_what_goes_wrong_is_named(folder, spec, says):
    (folder / "broken.py").write_text("x = 1\nimport not_there\n")
    (folder / "syntax.py").write_text("def build(:\n")
    (folder / "quits.py").write_text("import sys\nsys.exit(1)\n")
    with pytest.raises(ModelNotLoadedError) as caught:
        load_model(spec)
    assert says in str(caught.value)


def test_a_folder_is_no_model_file(folder):
    (folder / "pack.py").mkdir()
    with pytest.raises(ModelNotLoadedError, match="is a folder"):
        load_model("pack.py:build")
