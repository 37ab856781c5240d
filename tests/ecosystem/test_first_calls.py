"""The tools around torch as the first that call a rewritten model, on models of several kinds of surgery."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from regbn_surgery import CaptureError, RegBN, regbnify
from tests.surgery.models import build, operate, vectors

from . import _first_calls, _tensor_parallel
from ._subject import DoesNotApplyError, Subject
from .users_nets import HasJoins, HasPart, Joins

SITUATIONS = {**_first_calls.SITUATIONS, **_tensor_parallel.SITUATIONS}
#: Of these one small model is enough for `make test`: they start the compiler, onnxruntime or further processes.
SLOW = ("first: export", "first: strict export", "first: ONNX", "first: tensor parallel")


def parameters() -> list[Any]:
    return [
        pytest.param(name, situation, marks=pytest.mark.slow if slow else (), id=f"{name}-{situation}")
        for name in ("concat", "hf_blip_captioning", "hf_lxmert")
        for situation in SITUATIONS
        for slow in [situation in SLOW or name == "hf_lxmert"]
    ]


@pytest.mark.parametrize(("name", "situation"), parameters())
def test_situation(name: str, situation: str) -> None:
    try:
        SITUATIONS[situation](Subject(name))
    except DoesNotApplyError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("seed", [0, 6])
def test_random_numbers_are_drawn_alike(seed: int) -> None:
    """ALBEF draws the negatives of a batch: the gradients are compared of the same ones, wherever torch stands."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        SITUATIONS["first: torch.func.grad"](Subject("albef"))


@pytest.mark.parametrize("name", ["without_modules", "hf_layoutlmv3"])
def test_a_model_that_offloading_breaks_is_told_by_its_original(name: str) -> None:
    """Once, both computed garbage, and the original by chance that of before."""
    with pytest.raises(DoesNotApplyError, match="compute the same with cpu_offload"):
        SITUATIONS["first: offload"](Subject(name))


@pytest.mark.parametrize("situation", ["first: jit.trace", "first: torch.func.grad"])
def test_a_host_that_runs_from_a_graph_bears_tools_that_follow_calls(situation: str) -> None:
    SITUATIONS[situation](Subject("show_and_tell"))


def test_symbols_are_followed_through_masked_scatter() -> None:
    SITUATIONS["first: symbolic_trace"](Subject("masked_scatter"))


def test_a_host_that_runs_from_a_graph_is_refused_from_a_package() -> None:
    """Its graph is captured at the first call, and the copied code has no RegBN to be found."""
    SITUATIONS["first: torch.package"](Subject("show_and_tell"))


@pytest.mark.parametrize("situation", ["first: jit.trace", "first: functional_call"])
def test_a_model_without_its_regbn_would_be_seen(situation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each situation compares with a copy that computes with RegBN: the original in its place fails."""
    subject = Subject("concat")
    made = iter([subject.original().eval(), _first_calls.fresh(subject)])
    monkeypatch.setattr(_first_calls, "fresh", lambda _: next(made))
    with pytest.raises(AssertionError):
        SITUATIONS[situation](subject)


# -- TorchScript ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Joins, HasPart, HasJoins])
def test_a_script_is_refused_with_what_to_use(cls: type[nn.Module]) -> None:
    torch.jit.script(build(cls))
    model = operate(build(cls), vectors())
    before = dict(model.named_modules())
    with pytest.raises(CaptureError, match=r"torch\.jit\.trace\(model\.eval\(\), example\)"):
        torch.jit.script(model)
    assert dict(model.named_modules()) == before


def test_so_is_that_of_regbn_in_a_model_of_the_users() -> None:
    with pytest.raises(CaptureError, match=r"torch\.export\.export"):
        torch.jit.script(nn.Sequential(RegBN(4, 3)))


def test_so_is_another_module_in_its_place() -> None:
    class Passes(nn.Module):
        def forward(self, f: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return f, g

    rules = {"version": 1, "rules": [{"id": "x", "match": {"kind": "concat"}, "normalize": "a"}]}
    model = regbnify(build(Joins), rules, vectors(), make=lambda _: Passes())
    with pytest.raises(CaptureError, match=r"torch\.jit\.trace"):
        torch.jit.script(model)
