"""The first rules file for a model: it reads, checks and plans as it is, whatever the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import regbn_surgery
from regbn_surgery import PlanError, Rules
from regbn_surgery._plan import Facts, decide
from regbn_surgery._plan.starter import starter
from regbn_surgery._starter import starter_rules
from regbn_surgery._types import ExcludedInput, Plan

from ..zoo import CASES
from .fakes import MAP, TOKENS, UNKNOWN, inspection, point, side, site


def planned(text: str, found: Any, facts: Facts | None = None) -> Plan:
    return decide(Rules.from_text(text), found, None, facts)


def test_a_rule_for_each_point_and_a_comment_on_each() -> None:
    found = inspection(
        point("mid.add", side("gray"), side("colored"), kind="sum", level="middle", owner="mid"),
        point("cat", side("gray"), side("colored")),
    )
    text = starter(found)
    rules = Rules.from_text(text)
    assert [rule.id for rule in rules.rules] == ["sum-1", "concat-2"]
    assert "# mid.add: gray against colored, in Fusion (model.py:42), middle" in text
    assert "# not one: mask (its name says mask)" in text
    assert [(s.point, s.f.home) for s in planned(text, found).sites] == [("mid.add", ("gray",)), ("cat", ("gray",))]


def test_repeated_layers_share_a_rule() -> None:
    sides = side("gray", (8, 7, 32), TOKENS), side("colored", (8, 9, 16), TOKENS)
    found = inspection(
        *(point(f"layers.{i}.attention", *sides, kind="attention", owner=f"layers.{i}") for i in range(3))
    )
    text = starter(found)
    assert 'match: {kind: attention, point: "layers.*.attention"}' in text
    assert "layers.0.attention, and 2 more like it" in text
    assert len(planned(text, found).sites) == 3


def test_a_causal_stream_and_a_gate_are_what_they_can_be() -> None:
    tokens = side("colored", (8, 7, 32), TOKENS)
    found = inspection(
        point("cross", side("gray", (8, 9, 16), TOKENS), tokens, kind="attention"),
        point(
            "mul", side("gray"), side("colored"), kind="product", sites=(site(side("gray"), side("colored"), gate=0),)
        ),
    )
    facts = Facts(causal=frozenset({"colored"}))
    text = starter(found, facts)
    assert [s.f.home for s in planned(text, found, facts).sites] == [("colored",), ("colored",)]
    # Comments name f before g, as the rules below them do.
    assert "# cross: colored against gray, in Fusion" in text
    assert "# mul: colored against gray, in Fusion" in text


def test_comments_name_f_before_g_at_every_pair() -> None:
    sides = (side("sound"), side("gray+colored"), side("gray"))
    found = inspection(point("cat", *sides), modalities=("gray", "colored", "sound"))
    text = starter(found)
    comment = next(line for line in text.splitlines() if "# cat: " in line)
    made = [f"{'+'.join(s.f.home)} against {'+'.join(s.g.home)}" for s in planned(text, found, None).sites]
    assert sorted(comment.partition("cat: ")[2].partition(", in Fusion")[0].split(", ")) == sorted(made)


def test_what_cannot_be_done_is_a_comment_with_its_reason() -> None:
    blocked = site(side("gray"), side("colored"), obstacle="the batch is folded\ninto the heads")
    found = inspection(
        point("a", side("gray"), side("colored"), kind="sum", sites=(blocked,)),
        point("b", side("gray", (8, 28, 28), UNKNOWN), side("colored"), kind="product"),
        point("cat", side("gray"), side("colored")),
    )
    text = starter(found)
    assert "  # Not possible as it is: RegBN cannot go there: the batch is folded into the heads; leave it out" in text
    assert "  # Not possible as it is: the channel axis of an operand (8×28×28, of gray) is unknown" in text
    assert [rule.id for rule in Rules.from_text(text).rules] == ["concat-3"]
    assert "  # - id: sum-1" in text


def test_a_large_projection_is_made_small() -> None:
    big = [side(name, (8, 64, 56, 56), MAP) for name in ("gray", "colored")]
    text = starter(inspection(point("cat", *big)))
    assert "regbn: {projection: low_rank}" in text


def test_trained_weights_are_left_as_they_compute() -> None:
    found = inspection(point("cat", side("gray"), side("colored")))
    facts = Facts(weights_seen=True, trained="they come from 'x'")
    (made,) = planned(starter(found, facts), found, facts).sites
    assert made.options == {"normalize_output": False, "centre": True}


@pytest.mark.parametrize(
    ("kind", "preset"), [("scatter", "scatter"), ("attention", "cross-attention-pretrained"), ("concat", None)]
)
def test_fresh_weights_of_a_class_that_has_pretrained_ones_have_the_line_for_those(
    kind: str, preset: str | None
) -> None:
    found = inspection(point("p", side("gray"), side("colored"), kind=kind))
    text = starter(found, Facts(weights_seen=True, has_pretrained_class=True))
    (other,) = [line for line in text.splitlines() if line.startswith("# defaults:")]
    (live,) = [line for line in text.splitlines() if line.startswith("defaults:")]
    swapped = text.replace(other + "\n", "").replace(live, other.removeprefix("# "))
    (made,) = planned(swapped, found).sites
    assert made.options == {"normalize_output": False, "centre": True}
    named = [line for line in text.splitlines() if line.startswith("# The preset")]
    assert named == ([] if preset is None else [f"# The preset `{preset}` has these options, too (docs/presets.md)."])
    for facts in (Facts(weights_seen=True), Facts(has_pretrained_class=True, trained="they come from 'x'")):
        assert "# defaults:" not in starter(found, facts)


@pytest.mark.parametrize(
    ("kind", "preset"),
    [("scatter", "scatter"), ("attention", "cross-attention-pretrained"), ("similarity", "similarity")],
)
@pytest.mark.parametrize("facts", [{"has_pretrained_class": True}, {"trained": "they come from 'x'"}], ids=str)
@pytest.mark.parametrize("shape", [(), ((8, 5, 6), TOKENS)], ids=str)
def test_a_model_that_may_be_pretrained_gets_what_the_preset_for_it_says(
    kind: str, preset: str, facts: Any, shape: Any
) -> None:
    sides = side("gray", *shape), side("colored", *shape)
    found = inspection(point("p", *sides, kind=kind, selected_by_default=kind != "similarity"))
    given = Facts(weights_seen=True, **facts)
    text = starter(found, given).replace("\ndefaults: {regbn: {centre", "\n# old: {regbn: {centre")
    if "trained" not in facts:
        text = text.replace("# defaults:", "defaults:")
    (ours,) = planned(text, found, given).sites
    (theirs,) = decide(Rules.load(preset), found, None, given).sites
    assert (ours.replace, ours.reduce, ours.options) == (theirs.replace, theirs.reduce, theirs.options)
    assert ours.replace == "f"
    assert "replace: f" not in starter(found, Facts(weights_seen=True))


def test_which_side_of_pairs_is_f_is_said_as_it_is_done() -> None:
    found = inspection(point("cat", side("gray", (8, 5, 96), TOKENS), side("colored", (8, 5, 96), TOKENS)))
    facts = Facts(causal=frozenset({"colored"}))
    text = starter(found, facts)
    assert "but if\n# only one of them is causal" in text
    pairs = Rules.from_text("version: 1\nmodalities: {gray: gray, colored: colored}\n"
                            "rules: [{id: a, match: {}, pairs: all}]")  # fmt: skip
    (made,) = decide(pairs, found, None, facts).sites
    assert (made.f.home, made.g.home) == (("colored",), ("gray",))


def test_kinds_that_no_rule_takes_unnamed_are_listed() -> None:
    found = inspection(
        point("cat", side("gray"), side("colored")),
        point("sim", side("gray"), side("colored"), kind="similarity", selected_by_default=False),
    )
    assert "#   sim (similarity, late, gray against colored)" in starter(found)


def test_names_that_yaml_would_take_for_something_else() -> None:
    names = ("on", "1", "a: b")
    excluded = (ExcludedInput("x\ny", "a reason\nof two lines"),)
    found = inspection(
        point("0.cat", side("on"), side("1"), side("a: b"), owner="0"), modalities=names, excluded=excluded
    )
    text = starter(found)
    assert list(Rules.from_text(text).modalities) == list(names)
    assert len(planned(text, found).sites) == 3


def test_nothing_to_write_says_what_to_do() -> None:
    with pytest.raises(PlanError, match=r"no two of its modalities meet.*--modality NAME=INPUT"):
        starter(inspection())
    blocked = site(side("gray"), side("colored"), obstacle="its values are integers")
    with pytest.raises(
        PlanError, match=r"RegBN cannot go to any of its fusion points:\n  `cat`: .*its values are integers"
    ):
        starter(inspection(point("cat", side("gray"), side("colored"), sites=(blocked,))))


@pytest.mark.parametrize(("kind", "level"), [("similarity", "late"), ("loss", "late"), ("sum", "remeeting")])
def test_points_that_no_rule_selects_by_default_get_a_rule_where_there_are_no_others(kind: str, level: str) -> None:
    left = point("s", side("gray"), side("colored"), kind=kind, level=level, selected_by_default=False)
    found = inspection(left)
    text = starter(found)
    assert [s.point for s in planned(text, found).sites] == ["s"]
    assert "Left alone unless a rule names its kind or level" in text
    both = inspection(point("cat", side("gray"), side("colored")), left)
    assert [s.point for s in planned(starter(both), both).sites] == ["cat"], "they are not wanted beside others"


@pytest.mark.parametrize(
    "name", ["mmtm", "three_modalities", "film_levels", "cross_attention_batch_first", "dict_inputs"]
)
def test_on_models(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    model = case.model()
    text = starter_rules(model, case.example, dict(case.modalities))
    made = regbn_surgery.plan(model, Rules.from_text(text), case.example)
    assert not [note for note in made.notes if "fails" in note]
    rewritten = regbn_surgery.regbnify(model, Rules.from_text(text), case.example)
    assert any("regbn" in key for key in rewritten.state_dict())
    assert torch.is_grad_enabled()
