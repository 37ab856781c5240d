"""What marks the padding of a side: what the rules say of it, what is found by itself, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import Plan, PlanError, RegBNWarning, Rules, RulesError, plan, regbnify

from ..surgery.padded_models import Gate, Hooked, Named, Queries, Tokens, bare, padded

Found = set[tuple[str, str, bool]]


class Given(Tokens):
    """Masks of every name, as the test gives them."""

    def forward(self, a: Tensor, b: Tensor, **masks: Any) -> Tensor:  # type: ignore[override]
        return self.head(torch.cat([self.enc_a(a), self.enc_b(b)], dim=1)).mean(1)


class Added(Tokens):
    """Of both the positions are the same."""

    def forward(self, a: Tensor, b: Tensor, attention_mask: Any = None) -> Tensor:  # type: ignore[override]
        return self.head(self.enc_a(a) + self.enc_b(b)).mean(1)


A, B = (4, 7), (4, 5)


def found(model: nn.Module, masks: dict[str, Any], **rule: Any) -> Found:
    (site,) = plan(model, rules(**rule), {**bare(4), **masks}).sites
    assert site.padding is not None
    return {(mask.side, mask.argument, mask.leaves_out) for mask in site.padding}


def rules(**rule: Any) -> dict[str, Any]:
    whole = {"id": "x", "match": {}, "normalize": "a", "against": "b", "reduce": "mean", **rule}
    return {"version": 1, "modalities": {"a": ["a"], "b": ["b"]}, "rules": [whole]}


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.long)


BY_ITSELF: dict[str, tuple[dict[str, tuple[int, ...]], Found]] = {
    "of f": ({"attention_mask": A}, {("f", "attention_mask", False)}),
    "of g": ({"attention_mask": B}, {("g", "attention_mask", False)}),
    "pads": ({"key_padding_mask": A}, {("f", "key_padding_mask", True)}),
    "both": ({"padding_mask": B, "attention_mask": A}, {("f", "attention_mask", False), ("g", "padding_mask", True)}),
    "a longer name": ({"text_attention_mask": A}, {("f", "text_attention_mask", False)}),
    "a longer name of pads": ({"src_key_padding_mask": B}, {("g", "src_key_padding_mask", True)}),
    "the plain name counts more": (
        {"old_attention_mask": A, "attention_mask": A},
        {("f", "attention_mask", False)},
    ),
    "two of one side": ({"x_attention_mask": A, "y_attention_mask": A}, set()),
    "a name that tells nothing": ({"mask": A, "word_mask": B}, set()),
    "of both together": ({"attention_mask": (4, 12)}, set()),
    "over heads and queries": ({"attention_mask": (4, 1, 7, 7)}, set()),
}


@pytest.mark.parametrize("case", BY_ITSELF)
def test_usual_names_of_a_fitting_shape_are_found(case: str) -> None:
    shapes, expected = BY_ITSELF[case]
    masks = {name: ones(*shape) for name, shape in shapes.items()}
    assert found(Given(), masks) == expected


def test_equally_many_positions_do_not_tell_the_side() -> None:
    """The note names the key, and with it the mask is taken."""
    example = {"a": torch.randn(4, 7, 6), "b": torch.randn(4, 7, 5), "attention_mask": ones(4, 7)}
    for model, kind in ((Tokens(), "concat"), (Added(), "sum")):
        made = plan(model, rules(match={"kind": kind}), example)
        assert made.sites[0].padding == ()
        of_f, of_g = [note for note in made.notes if note.startswith("RB123")]
        assert "`mask: {a: attention_mask}` in the rule" in of_f
        assert "`mask: {b: attention_mask}` in the rule" in of_g
        both = {"a": "attention_mask", "b": "attention_mask"}
        made = plan(model, rules(match={"kind": kind}, mask=both), example)
        assert {(mask.side, mask.argument) for mask in made.sites[0].padding or ()} == {
            ("f", "attention_mask"),
            ("g", "attention_mask"),
        }
        assert not [note for note in made.notes if note.startswith("RB123")]


def test_positions_by_themselves_have_no_mean() -> None:
    assert found(Given(), {"attention_mask": ones(*A)}, reduce="flatten") == set()


def test_a_gate_has_no_positions() -> None:
    example = padded(bare(4), 0, 0)
    made = plan(Gate(), rules(match={"kind": "product"}), example)
    assert [(mask.side, mask.argument) for mask in made.sites[0].padding or ()] == [("f", "attention_mask")]


def test_a_rule_decides_before_what_is_found() -> None:
    masks = {"attention_mask": ones(*A), "other_mask": ones(*A)}
    other = {"argument": "other_mask", "marks": "padding"}
    assert found(Given(), masks, mask={"a": other}) == {("f", "other_mask", True)}
    assert found(Given(), masks, mask="none") == set()
    assert found(Given(), masks, mask={"b": "none"}) == {("f", "attention_mask", False)}
    assert found(Given(), masks, mask={"a": "none"}) == set()


def test_defaults_and_overrides_say_it_too() -> None:
    masks = {"attention_mask": ones(*A), "text_padding_mask": ones(*A)}
    said = {**rules(), "defaults": {"mask": "none"}}
    example = {**bare(4), **masks}
    assert plan(Given(), said, example).sites[0].padding == ()
    (point,) = plan(Given(), said, example).decisions
    said["overrides"] = {point.point: {"mask": "text_padding_mask"}}
    (mask,) = plan(Given(), said, example).sites[0].padding or ()
    assert (mask.side, mask.argument, mask.leaves_out) == ("f", "text_padding_mask", True)


def test_a_plan_says_so_and_keeps_it() -> None:
    made = plan(Tokens(), rules(), padded(bare(4)))
    for text in (str(made), made._repr_html_()):
        assert "without padding (`attention_mask`)" in text
        assert "without padding (`b_padding_mask`)" in text
    assert type(made).from_json(made.to_json()) == made


def test_no_note_where_the_rule_lets_padding_count() -> None:
    example = {**bare(4), "words": ones(*A), "pads": torch.zeros(B, dtype=torch.bool)}
    assert not [note for note in plan(Named(), rules(mask="none"), example).notes if note.startswith("RB123")]


# -- what cannot be ---------------------------------------------------------------------------------------------------

LINE = "  - {id: x, match: {}, normalize: a, against: b, reduce: mean, mask: "
HEAD = "version: 1\nmodalities: {a: [a], b: [b]}\nrules:\n"
VALUE = f"rules.yaml:4:{len(LINE) + 1}: rule `x` at `cat`: "
INSIDE = f"rules.yaml:4:{len(LINE) + 5}: rule `x` at `cat`: "  # behind `{a: `

WRONG: dict[str, tuple[type[nn.Module], str, str]] = {
    "atention_mask": (
        Tokens,
        VALUE,
        "`atention_mask` is no argument of Tokens, in which the fusion happens, nor an input of the model that it is "
        "given as it is; did you mean `attention_mask`? (its arguments, of the shape of a side: `attention_mask` for "
        "a, `b_padding_mask` for b)",
    ),
    "{a: attention_msk}": (Tokens, INSIDE, "did you mean `attention_mask`?"),
    "{a: b_padding_mask}": (
        Tokens,
        INSIDE,
        "`b_padding_mask` of shape [B, 7] cannot mark padding there: a mask over f (a) has shape [B, 10]",
    ),
    "a": (Tokens, VALUE, "`a` of shape [B, 10, 6] cannot mark padding there: a mask over f (a) has shape [B, 10]; a "),
    "words": (Named, VALUE, "write `mask: {a: {argument: words, marks: content}}` or `marks: padding`"),
    "{a: {argument: wrds, marks: content}}": (
        Named,
        f"rules.yaml:4:{len(LINE) + 16}: rule `x` at `cat`: ",
        "`words` for a, `pads` for b)",
    ),
    "late_mask": (Hooked, "rules.yaml:4:", "`late_mask` is no argument of Block at `block`"),
}


@pytest.mark.parametrize("mask", WRONG)
def test_what_is_wrong_is_told_at_its_place(mask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, place, text = WRONG[mask]
    monkeypatch.chdir(tmp_path)
    Path("rules.yaml").write_text(HEAD + LINE + mask + "}\n")
    names = ("words", "pads") if cls is Named else ("attention_mask", "b_padding_mask")
    with pytest.raises(PlanError) as caught:
        plan(cls(), "rules.yaml", padded(bare(4), names=names))
    assert str(caught.value).startswith(place)
    assert text in str(caught.value)


def test_flatten_has_no_use_for_a_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rules.yaml").write_text(HEAD + LINE.replace("mean", "flatten") + "{b: b_padding_mask}}\n")
    with pytest.raises(PlanError, match=r"^rules.yaml:4:\d+: rule `x` at `cat`: `b_padding_mask` .* `reduce: flatten`"):
        plan(Tokens(), "rules.yaml", padded(bare(4)))


def test_a_shape_that_fits_both_sides_needs_a_name() -> None:
    example = {"a": torch.randn(4, 7, 6), "b": torch.randn(4, 7, 5), "attention_mask": ones(4, 7)}
    with pytest.raises(PlanError, match=r"equally many positions.*`mask: \{a: attention_mask\}` or"):
        plan(Tokens(), rules(mask="attention_mask"), example)


@pytest.mark.parametrize("mask", ["attention_mask", {"a": "attention_mask"}])
def test_a_mask_that_the_host_is_not_given_is_no_promise(mask: Any) -> None:
    with pytest.raises(PlanError, match=r"Tokens is not given `attention_mask` in the example"):
        plan(Tokens(), rules(mask=mask), bare(4))


def test_modalities_of_a_mask_exist_and_meet_there() -> None:
    with pytest.raises(RulesError, match=r"rules\[0\].mask.c: rule `x`: there is no modality `c`"):
        plan(Tokens(), rules(mask={"c": "attention_mask"}), padded(bare(4)))
    three = {**rules(mask={"c": "attention_mask"}), "modalities": {"a": ["a"], "b": ["b"], "c": ["attention_mask"]}}
    with pytest.raises(PlanError, match=r"`c` has no part in it: a and b meet there"):
        plan(Tokens(), three, padded(bare(4)))


def test_what_the_model_does_with_a_mask_tells_what_it_means() -> None:
    class Filled(Queries):
        def forward(self, a: Tensor, b: Tensor, word_mask: Any = None) -> Tensor:  # type: ignore[override]
            query = self.enc_a(a).masked_fill((word_mask == 0)[..., None], -9.0)
            read = self.attention(query, self.enc_b(b), self.enc_b(b), need_weights=False)[0]
            return self.head(read).mean(1)

    masks = {"word_mask": ones(*A)}
    wanted = {("f", "word_mask", False), ("g", "key_padding_mask", True)}
    assert found(Filled(), masks, mask="word_mask") == wanted


def test_a_plan_changed_by_hand_is_held_to_the_arguments() -> None:
    content = plan(Tokens(), rules(), padded(bare(4))).to_dict()
    first = content["sites"][0]["padding"][0]
    first["argument"] = "attention_msk"
    with pytest.raises(PlanError, match="`attention_msk`, which is no argument of Tokens; did you mean `attention_m"):
        regbnify(Tokens(), Plan.from_dict(content), padded(bare(4)))
    content["sites"][0]["padding"] = [first, first]
    with pytest.raises(PlanError, match=r"sites\[0\].padding: at most one mask for each side"):
        Plan.from_dict(content)


def test_rules_are_written_out_as_they_were() -> None:
    for mask in ("none", "words", {"a": "words"}, {"a": {"argument": "words", "marks": "content"}, "b": "none"}):
        written = Rules.load(rules(mask=mask)).to_dict()
        assert written["rules"][0]["mask"] == mask
        assert Rules.load(written) == Rules.load(rules(mask=mask))


class Turned(Tokens):
    """What is true in its `attention_mask` is padding, as its use says: by a fill, or by a layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.own = how, nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, a: Tensor, b: Tensor, attention_mask: Any = None) -> Tensor:  # type: ignore[override]
        x = self.enc_a(a)
        if self.how == "fill":
            x = x.masked_fill(attention_mask[..., None], 0.0)
        elif self.how == "where":
            x = torch.where(attention_mask[..., None], 0.0, x)
        else:
            x = x + self.own(x, x, x, key_padding_mask=attention_mask, need_weights=False)[0]
        return self.head(torch.cat([x, self.enc_b(b)], dim=1)).mean(1)


@pytest.mark.parametrize("how", ["fill", "where", "layer"])
def test_a_use_that_contradicts_the_name_is_asked_about(how: str) -> None:
    example = {**bare(4), "attention_mask": torch.zeros(A, dtype=torch.bool)}
    made = plan(Turned(how), rules(match={"kind": "concat"}), example)
    assert made.sites[0].padding == ()
    (note,) = [note for note in made.notes if note.startswith("RB123")]
    assert "`mask: {a: {argument: attention_mask, marks: content}}` in the rule, or `padding`" in note
    said = {"a": {"argument": "attention_mask", "marks": "padding"}}
    (mask,) = plan(Turned(how), rules(match={"kind": "concat"}, mask=said), example).sites[0].padding or ()
    assert (mask.side, mask.leaves_out) == ("f", True)


@pytest.mark.parametrize("name", ["non_padding_mask", "text_not_padding_mask", "inverted_attention_mask"])
def test_a_name_that_is_turned_around_tells_nothing(name: str) -> None:
    assert found(Given(), {name: ones(*A)}) == set()


class Halved(Tokens):
    """Of a's positions every second one is left, as many as b has or not."""

    def forward(self, a: Tensor, b: Tensor, attention_mask: Any = None) -> Tensor:  # type: ignore[override]
        return self.head(torch.cat([self.enc_a(a)[:, ::2], self.enc_b(b)], dim=1)).mean(1)


def test_a_mask_over_positions_that_were_left_behind_is_of_no_other_side() -> None:
    example = {"a": torch.randn(4, 10, 6), "b": torch.randn(4, 10, 5), "attention_mask": ones(4, 10)}
    made = plan(Halved(), rules(), example)
    assert made.sites[0].padding == ()
    assert any(note.startswith("RB123") for note in made.notes)


def test_padding_of_the_example_itself_is_a_warning() -> None:
    """A mask of ones is a note in the plan; padding that is there is told by `regbnify`, too."""
    example = {"a": torch.randn(4, 7, 6), "b": torch.randn(4, 7, 5), "attention_mask": ones(4, 7)}
    assert not plan(Tokens(), rules(), example).warnings
    example["attention_mask"][3, 5:] = 0  # not among the samples that are run
    with pytest.warns(RegBNWarning, match="RB123 padding counts in the mean: `attention_mask`"):
        made = plan(Tokens(), rules(), example)
    assert not [note for note in made.notes if note.startswith("RB123")]
    with pytest.warns(RegBNWarning, match="RB123"):
        regbnify(Tokens(), rules(), example)


class Spread(Tokens):
    """Hands its mask on as layers of `transformers` get it: over heads and queries, added to the scores."""

    class Layer(nn.Module):
        def forward(self, x: Tensor, y: Tensor, attention_mask: Tensor) -> Tensor:
            scores = x @ x.mT + attention_mask[:, 0]
            return torch.cat([scores.softmax(-1) @ x, y], dim=1)

    def __init__(self) -> None:
        super().__init__()
        self.layer = self.Layer()

    def forward(self, a: Tensor, b: Tensor, attention_mask: Any = None) -> Tensor:  # type: ignore[override]
        added = (attention_mask[:, None, None, :] == 0) * -1e9
        return self.head(self.layer(self.enc_a(a), self.enc_b(b), added)).mean(1)


def test_a_mask_that_is_spread_over_heads_is_named_as_the_note_says() -> None:
    example = {**bare(4), "attention_mask": ones(*A)}
    made = plan(Spread(), rules(match={"kind": "concat"}), example)
    (note,) = [note for note in made.notes if note.startswith("RB123")]
    assert "write `mask: {a: attention_mask}` in the rule" in note
    assert found(Spread(), {"attention_mask": ones(*A)}, match={"kind": "concat"}, mask={"a": "attention_mask"}) == {
        ("f", "attention_mask", False)
    }
