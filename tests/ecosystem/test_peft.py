"""Adapters of PEFT around a rewritten model, and a rewritten model inside of adapters."""

from __future__ import annotations

import copy
import functools
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from regbn_surgery import (
    CaptureError,
    Recipe,
    RecipeError,
    RegBNError,
    RegBNWarning,
    RewriteError,
    fold,
    load_regbn,
    regbnify,
    save_regbn,
    statistics,
    unregbnify,
)
from tests.ecosystem._subject import BY_NAME
from tests.surgery.models import Joined, Late, Nested, build, everything, operate, rules, run, step, vectors
from tests.zoo._running import run as run_case
from tests.zoo._running import training_step

from ._subject import Subject

peft = pytest.importorskip("peft")


def adapted(model: Any, **config: Any) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["enc_a"], **config))


def test_a_model_with_adapters_is_refused_with_the_line_to_write() -> None:
    with pytest.raises(
        CaptureError, match=r"get_peft_model\(regbnify\(base.*modules_to_save=\['regbn_<id of the rule>\.regbn'\]"
    ):
        regbnify(adapted(build(Late)), rules("concat"), vectors())


def test_the_line_for_a_model_that_has_its_adapters_works() -> None:
    model = adapted(build(Late))
    regbnify(model.get_base_model(), rules("concat"), vectors(), inplace=True)
    step(model, vectors())
    assert model.base_model.model.regbn_x.regbn.num_steps == 1


def test_the_recipe_of_a_model_with_adapters_says_where_the_rewritten_one_is() -> None:
    with pytest.raises(
        RecipeError, match=r"is around a model with RegBN \(Late\).*pass `\.base_model\.model`.*merge_and_unload"
    ):
        Recipe.of(adapted(operate(build(Late), vectors())))


@pytest.mark.parametrize(
    ("names", "kept"),
    [(["regbn_x.regbn"], None), (["enc_b", "regbn"], ["enc_b"]), (["enc_b"], ["enc_b"]), (None, None)],
)
@pytest.mark.parametrize("cls", [Joined, Nested])
def test_the_adapters_name_no_regbn_any_more_once_it_is_out(cls: Any, names: Any, kept: Any, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["enc_a"], modules_to_save=names, init_lora_weights=False)
    original = build(cls)
    model = peft.get_peft_model(operate(original, vectors()), config)
    unregbnify(model)
    assert model.peft_config["default"].modules_to_save == kept
    assert config.modules_to_save == names, "it is the user's, for other models, too"
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(original, tmp_path)
    assert loaded.peft_config["default"].modules_to_save == kept
    torch.testing.assert_close(run(loaded, vectors(3), False), run(model, vectors(3), False))


@pytest.mark.parametrize("way", [lambda m: m, torch.nn.DataParallel])
def test_fold_under_adapters(way: Any) -> None:
    """The layer behind RegBN has no adapter here, so that it can be folded; the adapters stay."""
    model = way(adapted(operate(build(Joined), vectors(), regbn={"normalize_output": False})))
    step(model, vectors())
    model.eval()
    wanted = model(**vectors(6))
    assert fold(model, vectors(), inplace=True) is model
    assert not statistics(model)
    assert any("lora_A" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(model(**vectors(6)), wanted)


def test_fold_of_a_regbn_that_peft_trains_a_copy_of_says_to_merge_first() -> None:
    rewritten = operate(build(Joined), vectors(), regbn={"normalize_output": False})
    model = adapted(rewritten, modules_to_save=["regbn_x.regbn"])
    with pytest.raises(RewriteError, match=r"regbn_x: PEFT trains a copy of it: merge the adapters first"):
        fold(model, vectors())
    merged = model.merge_and_unload()
    wanted = merged.eval()(**vectors(6))
    torch.testing.assert_close(fold(merged, vectors())(**vectors(6)), wanted, rtol=1e-5, atol=1e-6)


def test_regbn_goes_out_after_the_adapters_are_merged() -> None:
    model = adapted(operate(build(Late), vectors()), modules_to_save=["regbn_x.regbn"])
    step(model, vectors())
    merged = unregbnify(model.merge_and_unload())
    assert type(merged) is Late
    assert list(merged.state_dict()) == list(build(Late).state_dict())


@pytest.mark.parametrize("cls", [Late, Nested])
@pytest.mark.parametrize("way", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_saving_adapters_without_the_state_of_regbn_says_so_once(way: Any, cls: Any, tmp_path: Path) -> None:
    model = adapted(way(operate(build(cls), vectors())))
    with pytest.warns(
        RegBNWarning, match=r"modules_to_save=\['regbn_x\.regbn'\].*save_regbn\(copy\.deepcopy\(model\)\.merge_"
    ):
        model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("cls", [Joined, Nested])  # the BatchNorm of Late is no part of adapters, either
def test_the_line_of_the_warning_carries_the_state(cls: Any, tmp_path: Path) -> None:
    base = operate(build(cls), vectors())
    model = adapted(copy.deepcopy(base), modules_to_save=["regbn_x.regbn"])
    step(model, vectors())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        model.save_pretrained(tmp_path)
    found = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    expected, ours = run(model, vectors(3), False), run(found, vectors(3), False)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_the_state_of_the_model_itself_is_whole_and_says_nothing() -> None:
    model = adapted(operate(build(Late), vectors()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        assert any("regbn_x" in name for name in model.get_base_model().state_dict())


class Around(torch.nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, a: Any, b: Any) -> Any:
        return self.inner(a, b)


@pytest.mark.parametrize("cls", [Late, Nested])
@pytest.mark.parametrize("adapters_first", [True, False])
def test_adapters_of_a_part_of_the_rewritten_model_say_so_too(cls: Any, adapters_first: bool, tmp_path: Path) -> None:
    if adapters_first:
        model = regbnify(Around(adapted(build(cls))), rules("concat"), vectors())
    else:
        model = regbnify(Around(build(cls)), rules("concat"), vectors())
        model.inner = adapted(model.inner)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        assert any("regbn_x" in name for name in model.state_dict())  # which is whole
    with pytest.warns(RegBNWarning, match=r"do not hold the state of RegBN \((fusion\.)?regbn_x\)"):
        model.inner.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        model.inner.save_pretrained(tmp_path)


@pytest.mark.parametrize("cls", [Late, Nested])
def test_adapters_around_a_model_that_holds_the_rewritten_one_say_so_too(cls: Any, tmp_path: Path) -> None:
    model = adapted(Around(operate(build(cls), vectors())))
    with pytest.warns(RegBNWarning, match=r"do not hold the state of RegBN \((fusion\.)?regbn_x\)"):
        model.save_pretrained(tmp_path)


def test_the_watch_goes_with_regbn() -> None:
    for cls in (Late, Nested):
        original = build(cls)
        before = everything(original)
        model = regbnify(original, rules("concat"), vectors(), inplace=True)
        assert model._state_dict_hooks
        assert everything(unregbnify(model)) == before
        assert not any(module._state_dict_hooks for module in model.modules())


# -- a copy of RegBN that PEFT trains: `modules_to_save` ---------------------------------------------------------------


def with_copy(model: Any) -> Any:
    """The model with adapters in its attention and a copy of each RegBN."""
    names = [f"{name}.regbn" for name, module in model.named_modules() if type(module).__name__.endswith("Site")]
    short = sorted({".".join(name.split(".")[-2:]) for name in names})
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=short)
    return peft.get_peft_model(model, config)


@pytest.fixture(scope="module")
def llava() -> tuple[Any, dict[str, Any]]:
    subject = Subject("hf_llava")
    return subject.rewritten(), dict(subject.example(2))


def test_a_copy_fits_what_regbn_fits(llava: tuple[Any, dict[str, Any]]) -> None:
    """With the masks, which say which positions are images."""
    model, inputs = copy.deepcopy(llava[0]), llava[1]
    wrapped = with_copy(copy.deepcopy(model))
    numbers = []
    for each in (model, wrapped):
        torch.manual_seed(0)
        each.train()(**inputs)
        numbers.append({name.removeprefix("base_model.model."): value for name, value in statistics(each).items()})
    assert set(numbers[0]) == set(numbers[1])
    for name, value in numbers[0].items():
        torch.testing.assert_close(numbers[1][name], value, rtol=1e-4, atol=1e-6)
    assert any(float(value) > 0 for name, value in numbers[1].items() if name.endswith("norm_W_batch"))
    torch.testing.assert_close(wrapped.eval()(**inputs).logits, model.eval()(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_a_copy_goes_on_from_a_cache(llava: tuple[Any, dict[str, Any]]) -> None:
    wrapped, inputs = with_copy(copy.deepcopy(llava[0])), llava[1]
    wrapped.train()(**inputs)
    wrapped.eval()
    found = [wrapped.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*found)
    with wrapped.disable_adapter():  # then the untouched RegBN runs, whose W is 0
        assert all(float(x) == 0 for name, x in statistics(wrapped).items() if name.endswith("norm_W"))
        wrapped.generate(**inputs, max_new_tokens=4, do_sample=False)


# -- a folder of the whole model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Joined, Nested])
@pytest.mark.parametrize("config", [{}, {"modules_to_save": ["regbn_x.regbn"]}])
def test_a_model_with_adapters_is_written_with_a_warning_that_says_how_to_merge(
    config: Any, cls: Any, tmp_path: Path
) -> None:
    model = adapted(operate(build(cls), vectors()), init_lora_weights=False, **config)
    step(model, vectors())
    expected = run(model, vectors(3), False)
    with pytest.warns(RegBNWarning, match=r"RB414 .*has adapters of PEFT \(`enc_a`.*merge_and_unload\(\), folder\)"):
        save_regbn(model.get_base_model(), tmp_path / "with")
    fresh = build(cls)
    before = everything(fresh)
    with pytest.raises(RecipeError, match=r"before adapters are added .*merge_and_unload\(\)"):
        load_regbn(fresh, tmp_path / "with")
    assert everything(fresh) == before
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        save_regbn(copy.deepcopy(model).merge_and_unload(), tmp_path / "merged")
    torch.testing.assert_close(run(load_regbn(build(cls), tmp_path / "merged"), vectors(3), False), expected)
    torch.testing.assert_close(run(model, vectors(3), False), expected, rtol=0, atol=0)


class MakesItsAdapters(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = adapted(build(Nested))

    def forward(self, a: Any, b: Any) -> Any:
        return self.inner(a, b)


def test_adapters_that_the_class_makes_itself_come_back_without_a_word(tmp_path: Path) -> None:
    model = regbnify(MakesItsAdapters(), rules("concat"), vectors())
    step(model, vectors())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        save_regbn(model, tmp_path)
    found = load_regbn(MakesItsAdapters(), tmp_path)
    torch.testing.assert_close(run(found, vectors(3), False), run(model, vectors(3), False), rtol=0, atol=0)


@pytest.mark.parametrize("cls", [Joined, Nested])
def test_the_state_of_regbn_is_kept_beside_the_adapters(cls: Any, tmp_path: Path) -> None:
    base = operate(build(cls), vectors())
    model = adapted(copy.deepcopy(base), init_lora_weights=False)
    step(model, vectors())
    with pytest.warns(RegBNWarning, match="RB406") as told:
        model.save_pretrained(tmp_path)
    line = re.search(r"torch\.save\(\{.*?\}, path\)", str(told[0].message))
    assert line is not None
    path = tmp_path / "regbn.pt"
    exec(line[0], {"torch": torch, "model": model, "path": path})
    found = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    found.load_state_dict(torch.load(path), strict=False)
    expected, ours = run(model, vectors(3), False), run(found, vectors(3), False)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_adapters_of_a_part_are_told_no_folder_of_the_whole(tmp_path: Path) -> None:
    """The rewritten model is around the adapters or inside their model: merging does not give it as it was."""
    inside = adapted(Around(operate(build(Nested), vectors())))
    around = regbnify(Around(adapted(build(Nested))), rules("concat"), vectors()).inner
    for model in (inside, around):
        with pytest.warns(RegBNWarning, match=r"now, call torch\.save"):
            model.save_pretrained(tmp_path)


# -- transformers -----------------------------------------------------------------------------------------------------

HF = [("hf_clip", ["q_proj", "v_proj"]), ("hf_llava", ["q_proj", "v_proj"]), ("hf_blip_captioning", ["query", "value"])]


@functools.cache
def _rewritten(name: str) -> Any:
    pytest.importorskip("transformers")
    case = BY_NAME[name]
    model: Any = regbnify(case.model(), case.rules_dict(), case.example)
    training_step(model, case.example(3))
    return model


def _lora(layers: list[str]) -> Any:
    return peft.LoraConfig(r=2, target_modules=layers, init_lora_weights=False)


@pytest.mark.parametrize(("name", "layers"), HF)
def test_a_merged_model_of_transformers_comes_back_from_its_folder(
    name: str, layers: list[str], tmp_path: Path
) -> None:
    case = BY_NAME[name]
    model = peft.get_peft_model(copy.deepcopy(_rewritten(name)), _lora(layers))
    training_step(model.get_base_model(), case.example(3))
    batch = case.example(3)
    expected = run_case(model.get_base_model(), batch, train=False)
    save_regbn(model.merge_and_unload(), tmp_path)
    found = load_regbn(type(case.model()).from_pretrained(tmp_path), tmp_path)  # type: ignore[attr-defined]
    torch.testing.assert_close(run_case(found, batch, train=False), expected)


@pytest.mark.parametrize(("name", "layers"), HF)
def test_a_folder_with_adapters_in_it_does_not_load_as_random(name: str, layers: list[str], tmp_path: Path) -> None:
    case = BY_NAME[name]
    model = peft.get_peft_model(copy.deepcopy(_rewritten(name)), _lora(layers)).get_base_model()
    model.save_pretrained(tmp_path)
    fresh: Any = type(case.model()).from_pretrained(tmp_path)  # type: ignore[attr-defined]
    before = everything(fresh)
    with pytest.raises(RecipeError, match=r"do not fit .* before adapters are added .*merge_and_unload\(\)"):
        load_regbn(fresh, tmp_path)
    assert everything(fresh) == before


@pytest.mark.parametrize(("name", "layers"), HF)
def test_a_folder_with_adapters_in_it_loads_into_a_model_with_the_same(
    name: str, layers: list[str], tmp_path: Path
) -> None:
    """Also where transformers writes the weights of the class under other names."""
    case = BY_NAME[name]
    model = peft.get_peft_model(copy.deepcopy(_rewritten(name)), _lora(layers)).get_base_model()
    with pytest.warns(RegBNWarning, match="RB414"):
        save_regbn(model, tmp_path)
    fresh = peft.get_peft_model(case.model(), _lora(layers)).get_base_model()
    found = load_regbn(fresh, tmp_path)
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)
    batch = case.example(3)
    torch.testing.assert_close(run_case(found, batch, train=False), run_case(model, batch, train=False))


@pytest.mark.parametrize(("name", "layers"), HF[:2])
def test_adapters_of_transformers_own_say_that_they_leave_regbn_out(
    name: str, layers: list[str], tmp_path: Path
) -> None:
    case = BY_NAME[name]
    model = copy.deepcopy(_rewritten(name))
    model.add_adapter(_lora(layers))
    training_step(model, case.example(3))
    with pytest.raises(RegBNError, match=r"added by add_adapter.*Nothing was written"):
        save_regbn(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.warns(RegBNWarning, match=r"RB406 .*now, call torch\.save"):
        model.save_pretrained(tmp_path)
    kept = {name: value.clone() for name, value in model.state_dict().items() if "regbn_" in name}
    found = copy.deepcopy(_rewritten(name))
    found.load_adapter(str(tmp_path))
    found.load_state_dict(kept, strict=False)
    batch = case.example(3)
    torch.testing.assert_close(run_case(found, batch, train=False), run_case(model, batch, train=False))
