"""A rewritten model inside a wrapper: what reads it looks inside, what changes it does so where that is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from regbn_surgery import (
    RecipeError,
    RegBN,
    RewriteError,
    explain,
    fold,
    freeze,
    regbnify,
    save_regbn,
    statistics,
    summary,
    unregbnify,
    verify,
)
from regbn_surgery._surgery import the_rewritten_to_change
from tests.surgery.models import Joined, Late, build, operate, rules, step, vectors


class Own(nn.Module):
    """A parent with a call of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.backbone = inner

    def forward(self, batch: dict[str, Any]) -> Any:
        return self.backbone(**batch["sides"])


def compiled(inner: nn.Module) -> Any:
    return torch.compile(inner, backend="eager")


def of_peft(inner: nn.Module) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(inner, peft.LoraConfig(r=2, target_modules=["enc_a"], modules_to_save=["regbn_x.regbn"]))


WRAPPERS: list[Callable[[nn.Module], Any]] = [Own, nn.DataParallel, compiled, of_peft, lambda m: Own(of_peft(m))]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_what_reads_a_rewritten_model_looks_inside(wrap: Callable[[nn.Module], Any]) -> None:
    inner = operate(build(Late), vectors())
    step(inner, vectors())
    wrapper = wrap(inner)
    training, state = wrapper.training, {key: value.clone() for key, value in wrapper.state_dict().items()}
    assert verify(wrapper, vectors(6)) == verify(inner, vectors(6))
    assert str(explain(wrapper)) == str(explain(inner)) != ""
    assert explain(wrapper).model == "Late"
    assert [row.name for row in summary(wrapper).rows] == [row.name for row in summary(inner).rows] == ["regbn_x"]
    assert summary(wrapper, vectors(), calls=1).seconds is not None
    assert statistics(wrapper)["regbn_x/steps"] == 1
    assert wrapper.training == training
    assert all(torch.equal(value, state[key]) for key, value in wrapper.state_dict().items())


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_freeze_holds_the_regbn_inside_still(wrap: Callable[[nn.Module], Any]) -> None:
    inner = operate(build(Late), vectors())
    step(inner, vectors())
    wrapper = wrap(inner)
    assert freeze(wrapper) is wrapper
    step(inner, vectors())
    assert statistics(inner)["regbn_x/steps"] == 1
    freeze(wrapper, False)
    step(inner, vectors())
    assert statistics(inner)["regbn_x/steps"] == 2


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_unregbnify_gives_the_wrapper_back_with_the_original_inside(wrap: Callable[[nn.Module], Any]) -> None:
    original, inner = build(Late), operate(build(Late), vectors())
    wrapper = wrap(inner)
    if wrap is compiled:
        wrapper(**vectors())  # what is compiled already must not run RegBN afterwards
    assert unregbnify(wrapper) is wrapper
    assert not any("regbn" in key for key in wrapper.state_dict())
    assert type(inner) is Late
    given = vectors()
    out = wrapper({"sides": given}) if isinstance(wrapper, Own) else wrapper(**given)
    torch.testing.assert_close(out, original(**given))
    with pytest.raises(RewriteError, match="carries no RegBN put in by regbnify, so there is nothing to undo"):
        unregbnify(wrapper)


def test_fold_works_inside_a_copy_of_the_wrapper() -> None:
    inner = regbnify(build(Joined), rules("concat", regbn={"normalize_output": False}), vectors())
    step(inner, vectors())
    wrapper = Own(inner)
    folded = fold(wrapper, vectors())
    assert type(folded) is Own
    assert not statistics(folded)
    assert statistics(wrapper)
    wrapper.eval()
    folded.eval()
    sides = {"sides": vectors(6)}
    torch.testing.assert_close(folded(sides), wrapper(sides), rtol=1e-4, atol=1e-5)


class DistributedDataParallel(nn.Module):
    """Known by its name, as torch's own is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class FullyShardedDataParallel(DistributedDataParallel):
    pass


@pytest.mark.parametrize("call", [freeze, unregbnify, lambda m: fold(m, vectors())])
@pytest.mark.parametrize("wrap", [DistributedDataParallel, FullyShardedDataParallel, lambda m: Own(of_peft(m))])
def test_a_wrapper_that_goes_by_its_parameters_is_not_changed(wrap: Any, call: Any) -> None:
    inner = operate(build(Late), vectors(), regbn={"affine": True})  # RegBN has parameters
    wrapper = DistributedDataParallel(wrap(inner))
    keys = list(wrapper.state_dict())
    with pytest.raises(RewriteError, match=r"goes by the parameters that it .* on the Late inside it \(`\.module"):
        call(wrapper)
    assert list(wrapper.state_dict()) == keys
    assert verify(wrapper, vectors()).ok


def test_without_parameters_of_regbn_ddp_has_nothing_to_mind() -> None:
    inner = operate(build(Late), vectors())
    assert the_rewritten_to_change(DistributedDataParallel(inner), "freeze") is inner
    with pytest.raises(RewriteError, match="Full"):
        the_rewritten_to_change(FullyShardedDataParallel(inner), "freeze")


@pytest.mark.parametrize(
    "ask", [freeze, unregbnify, summary, explain, lambda m: verify(m, vectors()), lambda m: fold(m, vectors())]
)
def test_several_inside_are_listed(ask: Any) -> None:
    model = nn.ModuleDict({"one": operate(build(Late), vectors()), "two": operate(build(Joined), vectors())})
    with pytest.raises(RewriteError, match=r"contains 2 models .*: `\.one` \(Late\), `\.two` \(Joined\)\. Pass"):
        ask(model)


def test_a_model_without_regbn_is_told_by_all_in_the_same_words() -> None:
    said = "Own carries no RegBN put in by regbnify"
    assert str(explain(Own(build(Late)))) == f"{said}."
    assert said in explain(Own(build(Late)))._repr_html_()
    for ask in (freeze, unregbnify, summary, lambda m: verify(m, vectors()), lambda m: fold(m, vectors())):
        with pytest.raises(RewriteError, match=said):
            ask(Own(build(Late)))


def test_of_regbn_by_hand_its_state_dict_is_named(tmp_path: Any) -> None:
    with pytest.raises(RecipeError, match=r"put in by hand: the model's own state_dict\(\) has all"):
        save_regbn(nn.ModuleList([RegBN(3, 2)]), tmp_path / "x")
    assert "by hand" not in str(explain(build(Late)))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_save_regbn_saves_no_part_of_what_it_is_given(wrap: Callable[[nn.Module], Any], tmp_path: Any) -> None:
    wrapper = wrap(operate(build(Late), vectors()))
    with pytest.raises(RecipeError, match=r"is around a model with RegBN \(Late\)\. save_regbn.*pass `\.") as error:
        save_regbn(wrapper, tmp_path / "x")
    assert ("merge_and_unload" in str(error.value)) == hasattr(wrapper, "merge_and_unload")
    assert not (tmp_path / "x").exists()
