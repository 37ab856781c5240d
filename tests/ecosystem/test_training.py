"""The ways of training, compiling and exporting, on models of every kind of surgery."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from regbn_surgery._surgery import identity
from tests.surgery.models import Late, build, operate, step, vectors
from tests.zoo._running import tensors_of

from ._in_training import SITUATIONS, _breaks, _export
from ._subject import DoesNotApplyError, Subject, assert_same, counting, outputs, regbns, seeded_call, warmed

FAST = {
    "autocast and GradScaler": ("pmr", "hf_blip_captioning"),
    "accumulation": ("pmr", "hf_blip_captioning"),
    "checkpointing": ("pmr", "hf_blip_captioning"),
    "EMA": ("pmr", "hf_blip_captioning"),
    "torch.compile": (),
    "generate with cache": ("hf_blip_captioning", "hf_whisper", "hf_trocr", "hf_llava", "hf_mllama"),
    "torch.export": ("pmr",),
    "ONNX": (),
}
SLOW = {
    "autocast and GradScaler": ("hf_vilt", "hf_lxmert", "hf_whisper"),
    "accumulation": ("hf_vilt", "hf_lxmert", "hf_whisper"),
    "checkpointing": ("hf_vilt", "hf_lxmert", "hf_whisper"),
    "EMA": ("hf_vilt", "hf_lxmert"),
    "torch.compile": ("pmr", "hf_blip_captioning", "hf_vilt", "hf_lxmert", "gradient_reversal"),
    "generate with cache": ("hf_vit_gpt2", "hf_pix2struct", "hf_paligemma", "hf_blip2", "hf_idefics2"),
    "torch.export": ("hf_blip_captioning", "hf_clip"),
    "ONNX": ("pmr", "hf_clip"),
}


def parameters() -> list[Any]:
    return [
        pytest.param(name, situation, marks=marks, id=f"{name}-{situation}")
        for table, marks in ((FAST, ()), (SLOW, pytest.mark.slow))
        for situation, names in table.items()
        for name in names
    ]


@pytest.mark.parametrize(("name", "situation"), parameters())
def test_situation(name: str, situation: str) -> None:
    try:
        SITUATIONS[situation](Subject(name))
    except DoesNotApplyError as error:
        pytest.skip(str(error))


def test_every_situation_is_tested_somewhere() -> None:
    assert set(FAST) == set(SLOW) == set(SITUATIONS)


@pytest.mark.parametrize("name", ["hf_blip_captioning", "hf_whisper", "hf_trocr"])
def test_regbn_runs_at_every_step_of_generation(name: str) -> None:
    """One token at a time against a cache of keys and values: each layer's RegBN runs once for each of them."""
    subject = Subject(name)
    model: Any = subject.rewritten().eval()
    example = {k: v for k, v in subject.example(2).items() if k != "decoder_input_ids"}
    start = {"decoder_start_token_id": 3, "bos_token_id": 3} if name == "hf_trocr" else {}
    for tokens in (3, 6):
        with counting(model) as calls:
            model.generate(
                **copy.deepcopy(example), **start, max_new_tokens=tokens, min_new_tokens=tokens, use_cache=True
            )
        assert len(calls) == 2
        assert set(calls.values()) == {tokens}


@pytest.mark.slow
def test_a_host_that_runs_as_it_is_computes_the_same_when_compiled() -> None:
    """Dynamo hands bound methods on by name, and by name the forward is the rewritten one: RegBN once ran twice."""
    torch._dynamo.reset()
    subject = Subject("hf_vilt")
    example = subject.example()
    eager = warmed(subject.rewritten(), example).train()
    model = copy.deepcopy(eager)
    with counting(model) as calls:
        _, found = _breaks(model, example)
    assert set(calls.values()) == {1}
    assert_same(found, [out.detach() for out in tensors_of(seeded_call(eager, example))])
    assert [m.num_steps for m in regbns(model).values()] == [m.num_steps for m in regbns(eager).values()]


def test_an_export_follows_the_batch_size() -> None:
    subject = Subject("pmr")
    model = warmed(subject.rewritten(), subject.example(4)).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(model, subject.example(4), dynamic_shapes=({0: batch}, {0: batch}))
        for size in (2, 4, 33):
            found = list(tensors_of(program.module()(*subject.example(size))))
            assert_same(found, outputs(model, subject.example(size)))


def test_a_call_that_was_never_made_is_exported_from_a_fresh_copy() -> None:
    model = operate(build(Late), vectors())
    step(model, vectors(9))
    given = {**vectors(), "bias": torch.ones(3)}
    expected = copy.deepcopy(model).eval()(**given)
    found = _export(copy.deepcopy(model).eval(), (), given).module()(**given)
    torch.testing.assert_close(found, expected)
    with identity(model):
        assert not torch.allclose(found, model.eval()(**given))


def test_what_does_not_apply_is_told_apart_from_what_fails() -> None:
    with pytest.raises(DoesNotApplyError, match="does not generate"):
        SITUATIONS["generate with cache"](Subject("pmr"))


def test_regbn_goes_on_from_a_cache_that_the_image_is_in() -> None:
    """Mllama keeps the keys of the image and hands the image on no more: later tokens meet it as it was."""
    subject = Subject("hf_mllama")
    model: Any = subject.rewritten().eval()
    for use_cache in (True, False):
        with counting(model) as calls:
            model.generate(
                **subject.example(2), max_new_tokens=3, min_new_tokens=3, do_sample=False, use_cache=use_cache
            )
        assert set(calls.values()) == {3}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learned_weights", "mmgcn"])
def test_a_break_that_the_original_has_in_no_form_is_seen(name: str) -> None:
    """A host under a function mode leaves the graph; the original does not, with a function around it or without."""
    with pytest.raises(AssertionError, match="graph breaks in evaluation, where the original has 0"):
        SITUATIONS["torch.compile"](Subject(name))
