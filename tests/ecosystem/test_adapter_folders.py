"""A folder of PEFT's adapters where a model's is wanted: what is said, and that what is said works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from regbn_surgery import Recipe, RecipeError, load_regbn, save_regbn
from regbn_surgery._cli.commands import cli
from tests.surgery.models import Joined, build, everything, operate, run, step, vectors

peft = pytest.importorskip("peft")

FACTORY = """
import torch
from tests.surgery.models import Joined, build, vectors

def plain():
    return build(Joined)

example_inputs = vectors()
"""


def trained_adapters(**config: Any) -> Any:
    config = {"modules_to_save": ["regbn_x.regbn"], **config}
    given = peft.LoraConfig(r=2, target_modules=["enc_a"], init_lora_weights=False, **config)
    model = peft.get_peft_model(operate(build(Joined), vectors()), given)
    step(model, vectors())
    return model.eval()


def with_trainer(model: Any, folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Trainer(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Any:
            return model(**inputs).square().mean()

    rows = [{name: value[0] for name, value in vectors(1, seed).items()} for seed in range(8)]
    arguments = transformers.TrainingArguments(
        folder, max_steps=2, per_device_train_batch_size=4, save_steps=2, report_to=[], use_cpu=True,
        disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows).train()
    return folder / "checkpoint-2"


def by_itself(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def under_a_name(model: Any, folder: Path) -> Path:
    model.add_adapter("other", model.peft_config["default"])
    model.save_pretrained(folder, selected_adapters=["other"])
    return folder


SAVED: list[Any] = [by_itself, with_trainer, under_a_name]


@pytest.mark.parametrize("save", SAVED)
@pytest.mark.filterwarnings("ignore::regbn_surgery.RegBNWarning")
def test_load_regbn_says_how_to_load_adapters_and_that_works(save: Any, tmp_path: Path) -> None:
    model = trained_adapters()
    folder = save(model, tmp_path)
    fresh = build(Joined)
    before = everything(fresh)
    for given in ({}, {"recipe": Recipe.of(operate(build(Joined), vectors()))}):
        with pytest.raises(RecipeError, match=r"is a folder of PEFT adapters .*`regbnify` the base model") as told:
            load_regbn(fresh, folder, **given)
        assert everything(fresh) == before
    line = re.search(r"PeftModel\.from_pretrained\(model, '(.*)'\)\.", str(told.value))
    assert line is not None
    loaded = peft.PeftModel.from_pretrained(operate(build(Joined), vectors()), line[1]).eval()
    if save is not under_a_name:  # whose adapters are others than those in use
        torch.testing.assert_close(run(loaded, vectors(3), False), run(model.eval(), vectors(3), False))


def test_a_folder_of_a_whole_model_loads_though_adapters_lie_beside_it(tmp_path: Path) -> None:
    model = operate(build(Joined), vectors())
    save_regbn(model, tmp_path)
    trained_adapters().save_pretrained(tmp_path)
    torch.testing.assert_close(
        run(load_regbn(build(Joined), tmp_path), vectors(3), False), run(model, vectors(3), False)
    )


def told_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path) -> str:
    (tmp_path / "mine.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["verify", "mine.py:plain", "--checkpoint", str(file)])
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


@pytest.mark.parametrize("config", [{}, {"modules_to_save": None}])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.filterwarnings("ignore::regbn_surgery.RegBNWarning")
def test_the_command_says_how_to_load_a_file_of_adapters(
    config: Any, safe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapters"
    model = trained_adapters(**config)
    model.save_pretrained(folder)
    (file,) = folder.glob("adapter_model.*")
    if not safe:
        torch.save(peft.get_peft_model_state_dict(model), file.with_name("adapter_model.bin"))
        file = file.with_name("adapter_model.bin")
    told = told_by_the_command(tmp_path, monkeypatch, file)
    assert "is a folder of PEFT adapters (adapter_config.json)" in told
    assert f"PeftModel.from_pretrained(model, '{folder}')" in told
    alone = file.rename(tmp_path / file.name)
    assert "PeftModel.from_pretrained(model, folder)" in told_by_the_command(tmp_path, monkeypatch, alone)
