"""What a mask marks as padding counts for nothing: neither in the fit, nor in the result at the words."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import nn

import regbn_surgery
from regbn_surgery._surgery._record import MASK_POSITIONS

from .models import build, operate, operate_by, run, site_of, step, ways
from .padded_models import (
    NAMES,
    SPELT,
    A,
    B,
    Decoded,
    Exchanged,
    Gate,
    Hooked,
    Inputs,
    Named,
    OneName,
    OwnQueries,
    Queries,
    Tokens,
    Towers,
    at_words,
    bare,
    given_to_regbn,
    holds,
    masks_of,
    padded,
)

KINDS: dict[str, tuple[type[nn.Module], str, Inputs]] = {
    "tokens": (Tokens, "concat", {}),
    "tokens, the other way": (Tokens, "concat", {"normalize": "b", "against": "a"}),
    "tokens, f alone": (Tokens, "concat", {"replace": "f"}),
    "queries": (Queries, "attention", {}),
    "queries as g": (Queries, "attention", {"normalize": "b", "against": "a"}),
    "queries of own attention": (OwnQueries, "attention", {}),
    "a gate": (Gate, "product", {}),
}


@pytest.mark.parametrize("way", ["source", "mode"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_counts_for_nothing(kind: str, way: str) -> None:
    cls, point, rule = KINDS[kind]
    model = operate_by(way, build(cls), padded(bare(4)), point, reduce="mean", **rule)
    assert len(masks_of(model)) == (1 if cls is Gate else 2)
    holds(model)


def test_the_preferred_way_of_each_kind_holds_as_well() -> None:
    for cls, point, rule in KINDS.values():
        holds(operate(build(cls), padded(bare(4)), point, reduce="mean", **rule), seeds=1)


@pytest.mark.parametrize(("cls", "way"), [(Hooked, "hook"), (Exchanged, "source")])
def test_an_owner_that_is_given_both_branches(cls: type[nn.Module], way: str) -> None:
    """The masks go by the names of whoever holds RegBN: the owner, or its caller where it may exchange the branches."""
    model = operate(build(cls), padded(bare(4)), "concat", reduce="mean")
    assert ways(model) == {way}
    names = ("padding_mask", "attention_mask") if way == "hook" else ("b_padding_mask", "attention_mask")
    assert sorted(masks_of(model)) == sorted(zip("gf", names, strict=True))
    holds(model)


@pytest.mark.parametrize("way", ["source", "mode"])
def test_the_mask_of_a_layer_is_its_own(way: str) -> None:
    """By position, and where the owner has another mask by the same name."""
    holds(operate_by(way, build(Decoded), padded(bare(4)), "attention"), seeds=1)
    names = ("key_padding_mask", "b_padding_mask")
    given = padded(bare(4), names=names)
    given["key_padding_mask"] = given["key_padding_mask"] == 0
    model = operate_by(way, build(OneName), given, "attention")
    assert sorted(masks_of(model)) == [("f", "key_padding_mask"), ("g", "key_padding_mask")]
    seen = given_to_regbn(model)
    run(model, given, True)
    assert torch.equal(seen[0]["f_mask"], ~given["key_padding_mask"])
    assert torch.equal(seen[0]["g_mask"], ~given["b_padding_mask"])


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.MultiheadAttention, "key_padding_mask"),
        (nn.TransformerDecoderLayer, "memory_key_padding_mask"),
        (nn.TransformerDecoder, "memory_key_padding_mask"),
        (nn.Transformer, "src_key_padding_mask"),
    ],
)
def test_torchs_own_layers_have_their_masks_where_we_think(layer: type[nn.Module], name: str) -> None:
    names = list(inspect.signature(layer.forward).parameters)[1:]
    assert names.index(name) == MASK_POSITIONS[name]


PAIRS = [
    (Tokens, "module:enc_a", "module:enc_b", "source"),
    (Tokens, "input:a", "input:b", "hook"),
    (Towers, "module:a.first", "module:b.first", "graph"),
    (Towers, "module:b.first", "module:a.first", "graph"),
]


@pytest.mark.parametrize(("cls", "f", "g", "way"), PAIRS)
def test_pairs(cls: type[nn.Module], f: str, g: str, way: str) -> None:
    rules = {"version": 1, "rules": [{"id": "x", "pair": {"f": f, "g": g}, "reduce": "mean"}]}
    model = regbn_surgery.regbnify(build(cls), rules, padded(bare(4)))
    assert ways(model) == {way}
    assert len(masks_of(model)) == 2
    holds(model)


def test_padding_stays_as_it_was() -> None:
    model = operate(build(Tokens), padded(bare(4)), "concat", reduce="mean")
    step(model, padded(bare()))
    seen: list[Any] = []
    site_of(model).register_forward_hook(lambda m, args, output: seen.extend((args, output)))
    run(model, padded(bare()), False)
    for before, after, words in zip(*seen, (A, B), strict=True):
        torch.testing.assert_close(after[:, words:], before[:, words:], rtol=0, atol=0)
        assert not torch.equal(after[:, :words], before[:, :words])


# -- what a rule says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["source", "mode"])
@pytest.mark.parametrize("form", ["bool", "long", "float", "additive"])
def test_a_rule_names_what_no_name_tells(form: str, way: str) -> None:
    example = padded(bare(4), names=NAMES)
    model = operate_by(way, build(Named), example, "concat", reduce="mean", mask=SPELT)
    assert masks_of(model) == [("f", "words"), ("g", "pads")]
    plain = copy.deepcopy(model)
    given = padded(bare(6, 1), names=NAMES)
    keep, leave = given["words"] == 1, given["pads"]
    low = float("-inf")
    forms: dict[str, Any] = {
        "bool": (keep, leave),
        "long": (keep.long(), leave.long()),
        "float": (keep.float(), leave.float()),
        "additive": (torch.zeros(keep.shape).masked_fill(~keep, low), torch.zeros(leave.shape).masked_fill(leave, low)),
    }
    given["words"], given["pads"] = forms[form]
    found, expected = run(model, given, True), run(plain, bare(6, 1), True)
    torch.testing.assert_close(at_words(found), at_words(expected), rtol=1e-5, atol=1e-6)


def test_one_side_alone_may_be_named_or_switched_off() -> None:
    example = padded(bare(4))
    chosen = {
        "none": [],
        "attention_mask": [("f", "attention_mask"), ("g", "b_padding_mask")],
        "b_padding_mask": [("f", "attention_mask"), ("g", "b_padding_mask")],
    }
    for mask, expected in chosen.items():
        assert sorted(masks_of(operate(build(Tokens), example, reduce="mean", mask=mask))) == expected
    model = operate(build(Tokens), example, reduce="mean", mask={"a": "none"})
    assert masks_of(model) == [("g", "b_padding_mask")]
    seen = given_to_regbn(model)
    run(model, padded(bare()), True)
    assert seen[0]["f_mask"] is None
    assert torch.equal(seen[0]["g_mask"], ~padded(bare())["b_padding_mask"])


def test_a_rule_may_turn_the_meaning_of_a_name_around() -> None:
    for marks, leaves_out in (("padding", True), ("content", False)):
        mask = {"a": {"argument": "attention_mask", "marks": marks}}
        model = operate(build(Tokens), padded(bare(4)), reduce="mean", mask=mask)
        seen = given_to_regbn(model)
        run(model, padded(bare()), True)
        assert torch.equal(seen[0]["f_mask"], (padded(bare())["attention_mask"] == 1) != leaves_out)


def test_an_input_of_the_model_may_stand_for_the_argument_that_it_is() -> None:
    model = operate(build(Hooked), padded(bare(4)), reduce="mean", mask={"b": "b_padding_mask"})
    assert sorted(masks_of(model)) == [("f", "attention_mask"), ("g", "padding_mask")]
    holds(model, seeds=1)
