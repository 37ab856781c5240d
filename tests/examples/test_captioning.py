"""The captioning example: a model of transformers, its Trainer, and RegBN in its cross-attentions."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "captioning"
pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def train() -> Any:
    spec = importlib.util.spec_from_file_location("captioning_train", EXAMPLE / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_it_learns_to_name_the_squares(train: Any, tmp_path: Path) -> None:
    result = train.main(["--out", str(tmp_path)])
    assert result["before"] < 0.2
    assert result["after"] > 0.9
    assert result["same"]
    assert result["steps"] == [200, 200]
    assert {"regbn.json", "config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}


def test_captions_say_what_the_pictures_show(train: Any) -> None:
    data = train.Squares(32, seed=3)
    assert data.images.shape == (32, 3, 32, 32)
    for image, caption in zip(data.images, data.captions.tolist(), strict=True):
        colour, row, column = (train.WORDS[word] for word in caption[1:4])
        top, left = 4 + 16 * train.ROWS.index(row), 4 + 16 * train.COLUMNS.index(column)
        inside = image[:, top : top + 8, left : left + 8].mean((1, 2))
        assert inside.argmax() == max(range(3), key=train.COLOURS[colour].__getitem__) or colour == "yellow"
        assert inside.sum() > image.mean((1, 2)).sum()


def test_the_rules_put_regbn_into_every_cross_attention(train: Any) -> None:
    from regbn_surgery import RegBN, regbnify

    data = train.Squares(4, seed=0)
    model = regbnify(train.build(), train.RULES, {"pixel_values": data.images, "input_ids": data.captions})
    names = [name for name, module in model.named_modules() if isinstance(module, RegBN)]
    assert [name.split(".regbn_")[0].endswith("crossattention.self") for name in names] == [True, True]
    assert all(model.get_submodule(name).options.fit == "running" for name in names)
