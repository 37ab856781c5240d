"""Notes by what is known: each is there for its reason, and is not there without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regbn_surgery import PlanError, plan
from regbn_surgery._plan import Facts, PairSides, decide
from regbn_surgery._rules import Rules
from regbn_surgery._types import Inspection, Plan

from .fakes import MAP, TOKENS, inspection, point, side, site

CAUSAL = Facts(causal=frozenset({"gray"}), weights_seen=True)
FRESH = Facts(weights_seen=True)


def plan_of(found: Inspection, facts: Facts, **rule: object) -> Plan:
    rules = {"version": 1, "rules": [{"id": "r", "match": {}, **rule}]}
    return decide(Rules.from_dict(rules), found, None, facts)


def tokens() -> Inspection:
    sides = side("gray", (8, 7, 32), TOKENS), side("colored", (8, 9, 16), TOKENS)
    return inspection(point("cross", *sides, kind="attention", sites=(site(*sides, reduce="mean"),)))


def vectors() -> Inspection:
    return inspection(point("cat", side("gray"), side("colored")))


class TestCausalStreams:
    def test_f_is_fitted_by_the_running_projection(self) -> None:
        plan = plan_of(tokens(), CAUSAL, normalize="gray")
        assert plan.sites[0].options["fit"] == "running"
        assert plan.sites[0].f.causal
        assert any("`fit: running` subtracts with the projection from before the step" in n for n in plan.notes)

    def test_unless_the_rule_says_otherwise_which_is_told(self) -> None:
        plan = plan_of(tokens(), CAUSAL, normalize="gray", fit="batch")
        assert plan.sites[0].options["fit"] == "batch"
        assert any("each position sees what comes after it" in n for n in plan.notes)

    def test_as_g_it_is_refused(self) -> None:
        with pytest.raises(PlanError) as caught:
            plan_of(tokens(), CAUSAL, normalize="colored")
        assert "g is `gray`, a causal stream" in str(caught.value)
        assert "write `allow_noncausal: true`, or normalise the other way round:" in str(caught.value)
        assert str(caught.value).endswith("\n    normalize: gray\n    against: colored")

    def test_unless_the_rule_allows_it_which_is_told(self) -> None:
        plan = plan_of(tokens(), CAUSAL, normalize="colored", allow_noncausal=True)
        assert "fit" not in plan.sites[0].options
        assert any("g is a causal stream" in n for n in plan.notes)
        with pytest.raises(PlanError):
            plan_of(tokens(), CAUSAL, normalize="colored", allow_noncausal=False)

    def test_all_pairs_takes_it_as_f_whatever_the_order(self) -> None:
        facts = Facts(causal=frozenset({"colored"}))
        assert plan_of(tokens(), facts, pairs="all").sites[0].f.home == ("colored",)
        assert plan_of(tokens(), Facts(), pairs="all").sites[0].f.home == ("gray",)

    def test_flattened_positions_and_their_norms(self) -> None:
        note = "the output norms run over its positions"
        assert any(note in n for n in plan_of(tokens(), CAUSAL, normalize="gray", reduce="flatten").notes)
        quiet = plan_of(tokens(), CAUSAL, normalize="gray", reduce="flatten", regbn={"normalize_output": False})
        assert not any(note in n for n in quiet.notes)

    def test_what_has_no_positions_left_is_no_stream(self) -> None:
        plan = plan_of(vectors(), CAUSAL, normalize="colored")
        assert not plan.sites[0].g.causal
        assert "fit" not in plan.sites[0].options

    def test_in_a_pair(self) -> None:
        rules = Rules.from_dict(
            {"version": 1, "rules": [{"id": "p", "pair": {"f": "input:colored", "g": "input:gray"}}]}
        )
        sides = PairSides("", side("colored", (8, 9, 16), TOKENS), side("gray", (8, 7, 32), TOKENS))
        with pytest.raises(PlanError, match="g is `gray`, a causal stream"):
            decide(rules, tokens(), lambda f, g, replaced: sides, CAUSAL)


class TestWeights:
    @pytest.mark.parametrize(
        ("facts", "says"),
        [
            (Facts(), "in a pretrained model set `regbn: {normalize_output: false}`"),
            (Facts(weights_seen=True, trained="they come from 'x'"), "the weights look trained (they come from 'x')"),
            (FRESH, None),
        ],
    )
    def test_output_norms(self, facts: Facts, says: str | None) -> None:
        notes = plan_of(vectors(), facts, normalize="gray").notes
        assert [says in note for note in notes] == [True] if says else notes == ()
        assert plan_of(vectors(), facts, normalize="gray", regbn={"normalize_output": False}).notes == ()


class TestSteps:
    @pytest.mark.parametrize(
        ("regbn", "told"),
        [({}, True), ({"momentum": 0.2}, False), ({"momentum": 0.01}, True), ({"correct_start": True}, False)],
    )
    def test_too_few_for_the_running_projection(self, regbn: dict, told: bool) -> None:
        facts = Facts(weights_seen=True, steps=60)
        notes = plan_of(vectors(), facts, normalize="gray", regbn=regbn).notes
        assert any("after 60 steps the running projection" in note and "(`regbn_r`)" in note for note in notes) == told
        assert plan_of(vectors(), FRESH, normalize="gray", regbn=regbn).notes == ()


class TestSizes:
    def test_more_features_than_samples(self) -> None:
        wide = inspection(point("cat", side("gray"), side("colored", (8, 16, 3, 3), MAP)))
        (note,) = plan_of(wide, Facts(weights_seen=True, batch=100), normalize="gray").notes
        assert note.startswith(
            "RB115 with the 100 samples of the example one batch does not determine W (144 features of g at regbn_r)"
        )
        assert "Ignore this if you train with larger batches" in note
        assert "`reduce: mean`" in note
        assert plan_of(wide, Facts(weights_seen=True, batch=144), normalize="gray").notes == ()
        (note,) = plan_of(vectors(), Facts(weights_seen=True, batch=4), normalize="gray").notes
        assert "`reduce: mean`" not in note  # vectors have no positions to average

    def test_a_large_projection(self) -> None:
        big = inspection(point("cat", side("gray", (8, 64, 12, 12), MAP), side("colored", (8, 64, 12, 12), MAP)))
        (note,) = plan_of(big, FRESH, normalize="gray").notes
        assert note.startswith("RB116 W of regbn_r is 9216×9216, 324 MiB in memory and in every checkpoint")
        assert plan_of(big, FRESH, normalize="gray", regbn={"projection": "low_rank"}).notes == ()


def test_a_similarity_head() -> None:
    found = inspection(point("sim", side("gray"), side("colored"), kind="similarity", selected_by_default=False))
    rules = Rules.from_dict(
        {"version": 1, "rules": [{"id": "r", "match": {"kind": "similarity"}, "normalize": "gray"}]}
    )
    (note,) = decide(rules, found, None, FRESH).notes
    assert note.startswith("RB113 a similarity head is normalised (`regbn_r`)")


def test_the_same_pair_several_times() -> None:
    found = inspection(point("a", side("gray"), side("colored")), point("b", side("gray"), side("colored")))
    (note,) = plan_of(found, FRESH, normalize="gray").notes
    assert note.startswith("RB114 gray is normalised against colored at 2 points in one forward")


class TestPairsByPattern:
    REFERENCES = ("input:x", "module:v.layer1", "module:a.layer1", "module:v.layer2", "module:a.layer2", "module:v")

    def asked(self, f: str, g: str, **rule: object) -> tuple[list[tuple[str, str]], Plan]:
        seen: list[tuple[str, str]] = []

        def resolve(one: str, two: str, replaced: str) -> PairSides:
            seen.append((one, two))
            return PairSides("", side("gray"), side("colored"))

        rules = Rules.from_dict({"version": 1, "rules": [{"id": "p", "pair": {"f": f, "g": g}, **rule}]})
        return seen, decide(rules, vectors(), resolve, Facts(references=self.REFERENCES))

    def test_groups_are_filled_in(self) -> None:
        seen, plan = self.asked(r"re:module:v\.layer(\d)", r"module:a.layer\1")
        assert seen == [("module:v.layer1", "module:a.layer1"), ("module:v.layer2", "module:a.layer2")]
        assert [site.name for site in plan.sites] == ["regbn_p", "regbn_p_1"]

    def test_the_pattern_may_be_g(self) -> None:
        seen, _ = self.asked(r"module:v.\g<rest>", r"re:module:a\.(?P<rest>.*)")
        assert seen == [("module:v.layer1", "module:a.layer1"), ("module:v.layer2", "module:a.layer2")]

    def test_expect_counts_pairs(self) -> None:
        assert self.asked(r"re:module:v\.layer(\d)", r"module:a.layer\1", expect=2)
        with pytest.raises(PlanError, match="expects exactly 3 pairs, but makes 2"):
            self.asked(r"re:module:v\.layer(\d)", r"module:a.layer\1", expect=3)
        assert self.asked("re:module:nothing", "module:v", expect={"min": 0})[1].sites == ()

    @pytest.mark.parametrize(
        ("g_needs_f", "f_needs_g", "replace", "refused"),
        [
            (True, False, "both", True),
            (True, False, "f", True),
            (False, True, "both", True),
            (False, True, "f", False),
            (False, False, "both", False),
        ],
    )
    def test_cycles(self, g_needs_f: bool, f_needs_g: bool, replace: str, refused: bool) -> None:
        rules = Rules.from_dict(
            {"version": 1, "rules": [{"id": "p", "pair": {"f": "module:a", "g": "module:b"}, "replace": replace}]}
        )
        sides = PairSides("", side("gray"), side("colored"), g_needs_f, f_needs_g)
        if refused:
            with pytest.raises(PlanError, match="would depend on itself"):
                decide(rules, vectors(), lambda f, g, replaced: sides)
        else:
            assert decide(rules, vectors(), lambda f, g, replaced: sides).sites


def test_several_operands_of_one_modality_at_one_point() -> None:
    """A RegBN goes in for each; somebody who expects one is told."""

    class Pooled(nn.Module):
        def __init__(self, further: bool) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.further = further

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.a(x), self.b(y), *([self.c(x)] if self.further else [])], 1)

    rule = {"id": "r", "match": {"kind": "concat"}, "normalize": "y", "against": "x"}
    example = torch.randn(8, 4), torch.randn(8, 4)
    twice, once = (plan(Pooled(further), {"version": 1, "rules": [rule]}, example) for further in (True, False))
    (note,) = [note for note in twice.notes if note.startswith("RB119")]
    assert "2 RegBN go in there, one after the other (`regbn_r` and `regbn_r_1`)" in note
    assert len(twice.sites) == 2
    assert not [note for note in once.notes if note.startswith("RB119")]


class TestPadding:
    """What marks padding is an input; whether RegBN is told of it depends on the point."""

    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.see = nn.Embedding(9, 8), nn.Linear(6, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, words: torch.Tensor, image: torch.Tensor, word_mask: torch.Tensor) -> torch.Tensor:
            text, seen = self.embedding(words), self.see(image)
            text = text + self.attention(text, seen, seen, need_weights=False)[0]
            return self.head((text * word_mask[..., None]).sum(1))

    class OfKeys(Cross):
        def forward(self, words: torch.Tensor, image: torch.Tensor, word_mask: torch.Tensor) -> torch.Tensor:
            text, seen = self.embedding(words), self.see(image)
            padding = ~word_mask
            seen = seen + self.attention(seen, text, text, key_padding_mask=padding, need_weights=False)[0]
            return self.head(seen.mean(1))

    class Joined(Cross):
        def forward(self, words: torch.Tensor, image: torch.Tensor, word_mask: torch.Tensor) -> torch.Tensor:
            joint = torch.cat([self.embedding(words), self.see(image)], dim=1)
            return self.head(joint).sum(1) * word_mask.sum(1, keepdim=True)

    class Written(Cross):
        def forward(
            self, words: torch.Tensor, image: torch.Tensor, attention_mask: torch.Tensor | None = None
        ) -> torch.Tensor:
            text = self.embedding(words).masked_scatter((words == 1)[..., None], self.see(image))
            return self.head(text if attention_mask is None else text * attention_mask[..., None])

    def notes(
        self, cls: type[nn.Module], normalize: str = "words", against: str = "image", **rule: object
    ) -> list[str]:
        words = torch.randint(2, 9, (4, 7))
        words[:, 1:6] = 1
        name = "attention_mask" if cls is self.Written else "word_mask"
        example = {"words": words, "image": torch.randn(4, 5, 6), name: torch.ones(4, 7, dtype=torch.bool)}
        rules = {"version": 1, "rules": [{"id": "r", "match": {}, "normalize": normalize, "against": against, **rule}]}
        rules["modalities"] = {"words": ["words"], "image": ["image"]}
        return [note for note in plan(cls(), rules, example).notes if note.startswith("RB123")]

    @pytest.mark.parametrize("cls", [Cross, Joined])
    def test_queries_and_joined_tokens_count_with_their_padding(self, cls: type[nn.Module]) -> None:
        (note,) = self.notes(cls, reduce="mean")
        assert "`word_mask` marks positions of f (words)" in note
        (note,) = self.notes(cls, "image", "words", reduce="mean", allow_noncausal=True)
        assert "`word_mask` marks positions of g (words)" in note

    def test_each_position_by_itself_is_no_mean(self) -> None:
        assert not self.notes(self.Joined, reduce="flatten")

    @pytest.mark.parametrize("cls", [OfKeys, Written])
    @pytest.mark.parametrize("sides", [("words", "image"), ("image", "words")])
    def test_a_mask_that_is_used_is_no_matter(self, cls: type[nn.Module], sides: tuple[str, str]) -> None:
        assert not self.notes(cls, *sides, reduce="mean", allow_noncausal=True)
