"""Adapters of PEFT around a rewritten model, and a rewritten model inside of adapters."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from regbn_surgery import CaptureError, Recipe, RecipeError, RegBNWarning, regbnify, statistics, unregbnify
from tests.surgery.models import Joined, Late, Nested, build, everything, operate, rules, run, step, vectors

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
    with pytest.raises(RecipeError, match=r"The Late inside it does: pass `\.base_model\.model`"):
        Recipe.of(adapted(operate(build(Late), vectors())))


@pytest.mark.parametrize("cls", [Late, Nested])
@pytest.mark.parametrize("way", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_saving_adapters_without_the_state_of_regbn_says_so_once(way: Any, cls: Any, tmp_path: Path) -> None:
    model = adapted(way(operate(build(cls), vectors())))
    with pytest.warns(RegBNWarning, match=r"modules_to_save=\['regbn_x\.regbn'\].*save_regbn\(model\.get_base_model\("):
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
