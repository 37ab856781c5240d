"""Masks in other calls than the example: none, other lengths, compiled, stored, and under torch's own ways."""

from __future__ import annotations

import copy
import io
import json
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RegBNWarning
from regbn_surgery._surgery import explain
from regbn_surgery._surgery._site import RegBNSite
from regbn_surgery.nn._compilers import OLD_COMPILER

from .models import build, forced, operate, run, site_of, step
from .padded_models import (
    NAMES,
    SPELT,
    A,
    Checkpointed,
    Encoded,
    Hooked,
    Inputs,
    Named,
    Queries,
    Tokens,
    Towers,
    at_words,
    bare,
    given_to_regbn,
    holds,
    masks_of,
    padded,
    step_on_words,
)

# -- other calls than the example -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def joined() -> Any:
    return operate(build(Tokens), padded(bare(4)), reduce="mean")


def test_a_call_without_masks_counts_all_positions(joined: Any) -> None:
    model = copy.deepcopy(joined)
    seen = given_to_regbn(model)
    run(model, bare(), True)
    run(model, {**padded(bare()), "attention_mask": None}, True)
    assert (seen[0]["f_mask"], seen[0]["g_mask"]) == (None, None)
    assert seen[1]["f_mask"] is None
    assert seen[1]["g_mask"] is not None


def test_a_mask_that_fits_no_longer_is_told_once_in_training() -> None:
    """All positions count then, and nobody would see it."""
    model = operate(build(Named), padded(bare(4), names=NAMES), "concat", reduce="mean", mask=SPELT)
    other = {**padded(bare(), names=NAMES), "words": torch.ones(6, 4)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(model, other, False)
    with pytest.warns(RegBNWarning, match=r"RB418 `words` of shape \[6, 4\] .* of f \[6, 10, 8\]: RegBN regbn_x "):
        run(model, other, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(model, other, True)


def test_other_lengths_and_other_batches(joined: Any) -> None:
    model, plain = copy.deepcopy(joined), copy.deepcopy(joined)
    for batch, pads in ((3, (0, 0)), (8, (1, 6)), (5, (9, 0))):
        inputs = bare(batch, batch)
        found = run(model, padded(inputs, *pads), True)
        torch.testing.assert_close(at_words(found), at_words(run(plain, inputs, True)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(site_of(model).state_dict(), site_of(plain).state_dict(), rtol=1e-5, atol=1e-6)


def test_lengths_that_differ_from_sample_to_sample(joined: Any) -> None:
    model = copy.deepcopy(joined)
    inputs = padded(bare(6))
    keep = torch.arange(A + 3) < torch.tensor([[1], [3], [10], [7], [2], [0]])
    inputs["attention_mask"] = keep.long()
    seen = given_to_regbn(model)
    first = run(model, inputs, False)
    assert torch.equal(seen[0]["f_mask"], keep)
    other = {**inputs, "a": torch.where(keep[..., None], inputs["a"], 55.0)}
    second = run(model, other, False)
    torch.testing.assert_close(first[1], second[1])
    torch.testing.assert_close(first[0][keep], second[0][keep])


def test_a_text_without_a_word_is_a_sample_without_text(joined: Any) -> None:
    model = copy.deepcopy(joined)
    inputs = padded(bare(6))
    inputs["attention_mask"][2] = 0
    out = run(model, inputs, True)
    assert all(torch.isfinite(part).all() for part in out)


@pytest.mark.skipif(OLD_COMPILER, reason="compiled or exported by an old torch, a host counts padding (docs/regbn.md)")
@pytest.mark.parametrize("cls", [Tokens, Queries, Hooked])
def test_compiled(cls: type[nn.Module]) -> None:
    kind = "attention" if cls is Queries else "concat"
    model = operate(build(cls), padded(bare(4)), kind, reduce="mean")
    plain = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    for training in (True, False):
        for pads in ((3, 2), (4, 1)):
            inputs = bare(6, sum(pads))
            found = run(compiled, padded(inputs, *pads), training)
            expected = run(plain, inputs, training)
            torch.testing.assert_close(at_words(found), at_words(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(site_of(model).state_dict(), site_of(plain).state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(OLD_COMPILER, reason="compiled or exported by an old torch, a host counts padding (docs/regbn.md)")
def test_exported_and_traced_by_symbols(joined: Any) -> None:
    model = copy.deepcopy(joined)
    step(model, padded(bare()))
    model.eval()
    expected = at_words(run(model, bare(5), False))
    exported = torch.export.export(model, (), kwargs=padded(bare(5))).module()
    torch.testing.assert_close(at_words(exported(**padded(bare(5)))), expected, rtol=1e-5, atol=1e-6)
    traced: Any = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(at_words(traced(**padded(bare(5)))), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [Tokens, Queries, Hooked])
def test_pickled_and_copied(cls: type[nn.Module]) -> None:
    model = operate(build(cls), padded(bare(4)), "attention" if cls is Queries else "concat", reduce="mean")
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    for other in (torch.load(stored, weights_only=False), copy.deepcopy(copy.deepcopy(model))):
        holds(other, seeds=1)


@pytest.mark.parametrize("cls", [Tokens, Queries, Hooked, Towers])
def test_saved_and_loaded(cls: type[nn.Module], tmp_path: Any) -> None:
    match: Inputs = {"match": {}, "normalize": "a", "against": "b"}
    if cls is Towers:
        match = {"pair": {"f": "module:a.first", "g": "module:b.first"}}
    rules = {
        "version": 1,
        "modalities": {"a": ["a"], "b": ["b"]},
        "rules": [{"id": "x", "reduce": "mean", **match}],
    }
    model = regbn_surgery.regbnify(build(cls), rules, padded(bare(4)))
    regbn_surgery.save_regbn(model, tmp_path)
    loaded = regbn_surgery.load_regbn(build(cls), tmp_path)
    assert sorted(masks_of(loaded)) == sorted(masks_of(model))
    assert len(masks_of(loaded)) == 2
    holds(loaded, seeds=1)
    assert [site.padding for report in explain(loaded) for site in report.sites] == [
        site.padding for report in explain(model) for site in report.sites
    ]


def test_recipes_of_before_both_sides_had_masks_go_on_as_they_were(tmp_path: Any) -> None:
    """One mask, which two records shared; a hook had it by itself."""

    def older(model: nn.Module) -> Any:
        regbn_surgery.save_regbn(model, tmp_path)
        record = json.loads((tmp_path / "regbn.json").read_text())
        (operation,) = record["operations"]
        operation["planned"].pop("padding")
        way = operation.get("hook") or operation["code"]
        (mask,) = [mask for mask in way.pop("masks") if mask["side"] == "g"]
        way["mask"] = mask["argument"]
        if "hook" in operation:
            way |= {"mask_of": "g", "padding": mask["leaves_out"]}
        else:
            operation["masking"] = ["g", mask["leaves_out"]]
        (tmp_path / "regbn.json").write_text(json.dumps(record))
        return regbn_surgery.load_regbn(build(type(model)), tmp_path)

    for cls in (Hooked, Tokens, Queries):
        kind = "attention" if cls is Queries else "concat"
        model = operate(build(cls), padded(bare(4)), kind, reduce="mean")
        loaded = older(model)
        seen = given_to_regbn(loaded)
        run(loaded, padded(bare()), True)
        assert seen[0]["f_mask"] is None
        assert torch.equal(seen[0]["g_mask"], ~padded(bare())["b_padding_mask"]), cls


def test_pickles_of_before_have_their_mask() -> None:
    model = operate(build(Hooked), padded(bare(4)), reduce="mean", mask={"a": "none"})
    site = site_of(model)
    state = {name: value for name, value in site.__getstate__().items() if name != "masks"}
    older = RegBNSite.__new__(RegBNSite)
    older.__setstate__({**state, "masking": ("g", True)})
    assert [(mask.side, mask.leaves_out) for mask in older.masks] == [("g", True)]
    older.__setstate__({**state, "masking": None})
    assert older.masks == ()


# -- what goes on around it -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_zeros_that_torchs_encoder_writes_over_padding_are_no_words() -> None:
    """Without gradient its fast path gives zeros at pads, with gradient something else: the words are the same."""
    model = operate(build(Encoded), padded(bare(4)), reduce="mean", mask={"b": "none"})
    assert masks_of(model) == [("f", "attention_mask")]
    step(model, padded(bare(), pads_b=0))
    model.eval()
    inputs = padded(bare(), pads_b=0)
    seen: list[Tensor] = []
    site_of(model).register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    slow = model(**inputs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nested tensors
        fast = model(**inputs)
        expected = model(**bare())
    assert not seen[0][:, A:].eq(0).all()
    assert seen[1][:, A:].eq(0).all()
    for found in (slow, fast):
        torch.testing.assert_close(at_words(found), at_words(expected), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_around_the_fusion() -> None:
    model = operate(build(Checkpointed), padded(bare(4)), reduce="mean")
    plain = operate(build(Tokens), padded(bare(4)), reduce="mean")
    for seed in range(2):
        step_on_words(model, padded(bare(6, seed)))
        step_on_words(plain, bare(6, seed))
    torch.testing.assert_close(site_of(model).state_dict(), site_of(plain).state_dict(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        {name.removeprefix("inner."): value for name, value in model.state_dict().items()},
        dict(plain.state_dict()),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_hook_that_fails_is_no_way_round_the_mask() -> None:
    """In whichever way RegBN goes in, the masks are the plan's."""
    made = regbn_surgery.plan(build(Hooked), {**rules_of(), "strict": True}, padded(bare(4)))
    for way in ("hook", "source", "mode"):
        with forced(way):
            model = regbn_surgery.regbnify(build(Hooked), made, padded(bare(4)))
        assert sorted(masks_of(model)) == [("f", "attention_mask"), ("g", "padding_mask")], way


def rules_of() -> Inputs:
    rule = {"id": "x", "match": {"kind": "concat"}, "normalize": "a", "against": "b", "reduce": "mean"}
    return {"version": 1, "modalities": {"a": ["a"], "b": ["b"]}, "rules": [rule]}


def test_a_stored_plan_of_before_finds_its_masks_by_itself() -> None:
    made = regbn_surgery.plan(build(Tokens), rules_of(), padded(bare(4)))
    content = made.to_dict()
    for site in content["sites"]:
        del site["padding"]
    model = regbn_surgery.regbnify(build(Tokens), regbn_surgery.Plan.from_dict(content), padded(bare(4)))
    assert len(masks_of(model)) == 2
