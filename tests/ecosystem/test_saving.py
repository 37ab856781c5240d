"""A rewritten model saved as its library saves: the recipe goes along, and comes back by any way of loading."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RecipeError, RegBNError, RegBNWarning, load_regbn, save_regbn, unregbnify
from tests.surgery.models import Fusion, Late, build, everything, operate, run, step, vectors


class Pretrained(nn.Module):
    """Saves itself and loads itself, as models of transformers and of the hub's mixin do."""

    def save_pretrained(self, save_directory: Any, *, is_main_process: bool = True) -> str:
        if is_main_process:
            Path(save_directory).mkdir(exist_ok=True)
            save_model(self, str(Path(save_directory) / "model.safetensors"))
        return "saved"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any) -> Any:
        model = cls()
        load_model(model, str(Path(pretrained_model_name_or_path) / "model.safetensors"), strict=False)
        return model


class IsHost(Pretrained):
    """The root's own forward has RegBN in it."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b, self.head = nn.Linear(6, 8), nn.Linear(5, 4), nn.Linear(12, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([torch.relu(self.enc_a(a)), torch.relu(self.enc_b(b))], dim=-1))


class HasHost(Pretrained):
    """RegBN goes into a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b, self.fusion = nn.Linear(6, 8), nn.Linear(5, 4), Fusion()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fusion(self.enc_a(a), right=self.enc_b(b))


class Asks(IsHost):
    """Has to keep its very class."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        assert type(self) is Asks
        return self.head(torch.cat([torch.relu(self.enc_a(a)), torch.relu(self.enc_b(b))], dim=-1))


class Tied(IsHost):
    """Two names for one tensor, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(6, 8)
        self.again.weight = self.enc_a.weight
        self.register_buffer("shift", torch.ones(8), persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.enc_a(a) + self.again(a) + self.shift, self.enc_b(b)], dim=-1))


ROOTS = [IsHost, HasHost, Asks]


def trained(cls: type[nn.Module]) -> Any:
    model = operate(build(cls), vectors())
    step(model, vectors())
    return model


def by_pickle(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def assert_comes_back(model: Any, fresh: Any, folder: Path) -> None:
    found = load_regbn(fresh, folder)
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(run(found, vectors(3), False), run(model, vectors(3), False), rtol=0, atol=0)


@pytest.mark.parametrize("cls", ROOTS)
@pytest.mark.parametrize("way", [lambda model: model, copy.deepcopy, by_pickle, copy.copy])
def test_save_pretrained_writes_the_recipe(way: Any, cls: Any, tmp_path: Path) -> None:
    model = trained(cls)
    assert way(model).save_pretrained(tmp_path / "d") == "saved"
    assert_comes_back(model, cls.from_pretrained(tmp_path / "d"), tmp_path / "d")
    assert_comes_back(model, cls(), tmp_path / "d")


@pytest.mark.parametrize("cls", ROOTS)
def test_so_does_a_model_that_was_loaded(cls: Any, tmp_path: Path) -> None:
    save_regbn(trained(cls), tmp_path / "first")
    second = load_regbn(cls(), tmp_path / "first")
    second.save_pretrained(save_directory=tmp_path / "second")
    assert (tmp_path / "second/regbn.json").read_text() == (tmp_path / "first/regbn.json").read_text()


@pytest.mark.parametrize("cls", ROOTS)
def test_without_regbn_it_is_the_class_that_it_was(cls: Any, tmp_path: Path) -> None:
    original = build(cls)
    before = everything(original)
    rules = {"version": 1, "rules": [{"id": "x", "match": {"kind": "concat"}, "normalize": "a"}]}
    model: Any = unregbnify(regbn_surgery.regbnify(original, rules, vectors(), inplace=True))
    assert everything(model) == before
    assert type(model) is cls
    assert "save_pretrained" not in model.__dict__
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


class Holder(Pretrained):
    """Saves itself, with a part that was rewritten by itself."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part


@pytest.mark.parametrize("way", [lambda model: model, copy.deepcopy, by_pickle])
@pytest.mark.parametrize("cls", [*ROOTS, Late])
def test_a_model_around_that_saves_says_once_that_it_writes_no_recipe(way: Any, cls: Any, tmp_path: Path) -> None:
    model = Holder(way(trained(cls)))
    with pytest.warns(RegBNWarning, match=r"weights of this Holder .* RegBN in `part`.*save_regbn\(model\.part, "):
        model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        model.save_pretrained(tmp_path)
        model.state_dict()


def test_a_model_that_was_rewritten_around_it_writes_the_recipe(tmp_path: Path) -> None:
    model = Holder(trained(IsHost))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        model.state_dict()
        model.part.save_pretrained(tmp_path)
    assert (tmp_path / "regbn.json").exists()
    original = unregbnify(model.part)
    assert not original._state_dict_hooks


def test_a_rank_that_does_not_write_writes_no_recipe(tmp_path: Path) -> None:
    trained(HasHost).save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


def test_a_recipe_that_cannot_be_written_does_not_cost_the_weights(tmp_path: Path) -> None:
    model = trained(HasHost)
    (tmp_path / "regbn.json").mkdir()
    with pytest.warns(RegBNWarning, match=r"The weights are written to .*, but RegBN's recipe \(regbn\.json\) was not"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("cls", [IsHost, HasHost])
def test_the_class_of_a_rewritten_model_says_what_it_leaves_out(cls: Any, tmp_path: Path) -> None:
    model = trained(cls)
    model.save_pretrained(tmp_path)
    with pytest.warns(RegBNWarning, match=rf"without RegBN.*load_regbn\({cls.__name__}\.from_pretrained\('") as told:
        fresh = type(model).from_pretrained(tmp_path)
    assert told[0].filename == __file__
    assert type(fresh) is cls
    assert_comes_back(model, fresh, tmp_path)


class CopiesItself(HasHost):
    def __deepcopy__(self, memo: Any) -> Any:
        made = type(self)()
        made.__dict__.update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return made


def test_a_class_that_copies_itself_keeps_saving(tmp_path: Path) -> None:
    model = copy.deepcopy(trained(CopiesItself))
    model.save_pretrained(tmp_path)
    assert_comes_back(model, CopiesItself(), tmp_path)


# -- without values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ROOTS)
def test_a_model_on_the_meta_device_takes_the_values_of_the_folder(cls: Any, tmp_path: Path) -> None:
    model = trained(cls)
    save_regbn(model, tmp_path)
    with torch.device("meta"):
        fresh = cls()
    fresh.enc_a.weight.requires_grad_(False)
    assert_comes_back(model, fresh, tmp_path)
    assert not fresh.enc_a.weight.requires_grad
    assert fresh.enc_b.weight.requires_grad


def test_what_is_tied_stays_tied(tmp_path: Path) -> None:
    from accelerate import init_empty_weights

    model = trained(Tied)
    save_regbn(model, tmp_path)
    with init_empty_weights():
        fresh = Tied()
    fresh.again.weight = fresh.enc_a.weight
    assert_comes_back(model, fresh, tmp_path)
    assert fresh.again.weight is fresh.enc_a.weight


def test_a_buffer_that_is_not_saved_cannot_come_from_the_folder(tmp_path: Path) -> None:
    save_regbn(trained(Tied), tmp_path)
    with torch.device("meta"):
        fresh = Tied()
    before = copy.deepcopy(list(vars(fresh)))
    with pytest.raises(RecipeError, match=r"has no values for shift, which is on the meta device.*init_empty_weights"):
        load_regbn(fresh, tmp_path)
    assert type(fresh) is Tied
    assert list(vars(fresh)) == before
    assert all(tensor.is_meta for tensor in (*fresh.parameters(), *fresh.buffers()))


def test_a_folder_that_lacks_one_of_two_like_tensors_is_refused(tmp_path: Path) -> None:
    """On the meta device all tensors lie at the same address."""
    from safetensors.torch import load_file, save_file

    save_regbn(trained(IsHost), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["enc_a.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with torch.device("meta"):
        fresh = IsHost()
    with pytest.raises(RecipeError, match=r"missing: enc_a\.bias"):
        load_regbn(fresh, tmp_path)


# -- transformers -----------------------------------------------------------------------------------------------------


def test_a_model_of_transformers_comes_back_from_its_own_folder(tmp_path: Path) -> None:
    from tests.zoo import CASES

    (case,) = [case for case in CASES if case.name == "hf_blip_captioning"]
    original: Any = case.model()
    model: Any = regbn_surgery.regbnify(original, case.rules_dict(), case.example)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        model.save_pretrained(tmp_path)
        found = load_regbn(type(original).from_pretrained(tmp_path), tmp_path)
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_class_in_place_of_a_model_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(RegBNError, match="found the class Linear"):
        regbn_surgery.load_regbn(nn.Linear, tmp_path)


# -- trainers that save a model which does not save itself -------------------------------------------------------------


def by_trainer(model: nn.Module, folder: Path, **options: Any) -> Any:
    """The Trainer of transformers, with a checkpoint at its second step in `folder`."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Training(transformers.Trainer):  # type: ignore[name-defined, misc]
        def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Any:
            return model(**inputs).square().mean()

    arguments = transformers.TrainingArguments(
        str(folder), max_steps=2, save_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_strategy="no", remove_unused_columns=False, label_names=[], **options,
    )  # fmt: skip
    rows = [{name: value[0] for name, value in vectors(1, seed).items()} for seed in range(8)]
    trainer = Training(model, arguments, train_dataset=rows)
    trainer.train()
    return trainer


class Wrapper(nn.Module):
    """Of the user's own around a model that saves itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = HasHost()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.inner(a, b)


@pytest.mark.parametrize("cls", [Late, Wrapper])
def test_a_trainer_that_saves_a_plain_module_writes_its_recipe(cls: Any, tmp_path: Path) -> None:
    model = trained(cls)
    trainer = by_trainer(model, tmp_path / "run")
    trainer.save_model(str(tmp_path / "by name"))
    for folder in (tmp_path / "run" / "checkpoint-2", tmp_path / "by name"):
        assert_comes_back(model, build(cls), folder)
    unregbnify(model)
    trainer.save_model(str(tmp_path / "without"))
    assert (tmp_path / "without" / "model.safetensors").exists()
    assert not (tmp_path / "without" / "regbn.json").exists()
    assert not model._state_dict_hooks


def test_so_does_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = trained(Late)
    accelerate.Accelerator(cpu=True).save_model(model, str(tmp_path))
    assert_comes_back(model, build(Late), tmp_path)


def test_a_rank_of_the_trainer_that_does_not_write_writes_no_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    trainer = by_trainer(trained(Late), tmp_path / "run")
    monkeypatch.setattr(transformers.TrainingArguments, "should_save", property(lambda self: False))
    trainer.save_model(str(tmp_path / "other rank"))
    assert not (tmp_path / "other rank").exists()


def test_nor_does_one_of_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank asks for the state dict there, and the main one writes."""
    accelerate = pytest.importorskip("accelerate")
    monkeypatch.setattr(accelerate.Accelerator, "is_main_process", property(lambda self: False))
    asked = []
    model = trained(Late)
    model.register_state_dict_post_hook(lambda *_: asked.append(True))
    accelerate.Accelerator(cpu=True).save_model(model, str(tmp_path))
    assert asked
    assert not (tmp_path / "regbn.json").exists()


def test_a_state_dict_alone_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = trained(Late)

    def _save(output_dir: str) -> None:
        torch.save(model.state_dict(), Path(output_dir) / "own.pt")

    _save(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["own.pt"]


def test_a_recipe_that_cannot_be_written_does_not_cost_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regbn_surgery import Recipe

    def fails(*_: Any) -> None:
        raise RecipeError("on purpose")

    model = trained(Late)
    monkeypatch.setattr(Recipe, "of", fails)
    with pytest.warns(RegBNWarning, match=r"RB404 .* are written to .*checkpoint-2, but .* was not: on purpose"):
        by_trainer(model, tmp_path)
    assert (tmp_path / "checkpoint-2" / "model.safetensors").exists()


def test_who_may_read_the_recipe_may_read_the_weights(tmp_path: Path) -> None:
    save_regbn(trained(IsHost), tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "regbn.json").stat().st_mode
