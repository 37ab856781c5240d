"""What the rules decide: which rule takes which point, what goes in there, and every way in which it cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest

from regbn_surgery import NothingMatchedError, PlanError, RulesError
from regbn_surgery._plan import PairSides, decide
from regbn_surgery._rules import Rules
from regbn_surgery._types import Inspection, Plan

from .fakes import MAP, TOKENS, UNKNOWN, inspection, point, side, site

GRAY, COLORED = side("gray"), side("colored")


def rules_of(*rules: dict, **rest: object) -> Rules:
    return Rules.from_dict({"version": 1, "rules": list(rules), **rest})


def plan_of(found: Inspection, *rules: dict, **rest: object) -> Plan:
    return decide(rules_of(*rules, **rest), found)


def refused(found: Inspection, *rules: dict, error: type[Exception] = PlanError, **rest: object) -> str:
    with pytest.raises(error) as caught:
        plan_of(found, *rules, **rest)
    return str(caught.value)


def two_points() -> Inspection:
    return inspection(
        point("mid.add", side("gray", (8, 16, 7, 7), MAP), side("colored", (8, 16, 7, 7), MAP), owner="mid",
              kind="sum", op="add", level="middle"),
        point("cat", GRAY, COLORED),
    )  # fmt: skip


ALL = {"id": "all", "match": {}, "normalize": "gray"}


def actions(plan: Plan) -> list[tuple[str, str, str | None]]:
    return [(decision.point, decision.action, decision.rule) for decision in plan.decisions]


class TestWhichRule:
    def test_the_first_matching_rule_decides_and_the_rest_is_left(self):
        plan = plan_of(two_points(), {"id": "late", "match": {"level": "late"}, "normalize": "gray"})
        assert actions(plan) == [("mid.add", "leave", None), ("cat", "normalize", "late")]
        assert "level is middle, not late" in plan.decisions[0].reason
        assert [s.point for s in plan.sites] == ["cat"]

    def test_skip_is_final(self):
        plan = plan_of(two_points(), {"id": "no", "match": {"kind": "sum"}, "action": "skip"}, ALL)
        assert actions(plan) == [("mid.add", "skip", "no"), ("cat", "normalize", "all")]

    def test_exclude_is_final(self):
        plan = plan_of(two_points(), ALL, exclude=[{"owner": "mid.**"}])
        assert actions(plan) == [("mid.add", "skip", None), ("cat", "normalize", "all")]
        assert "exclude[0]" in plan.decisions[0].reason

    @pytest.mark.parametrize(
        ("match", "chosen"),
        [
            ({"kind": ["sum", "concat"]}, ["mid.add", "cat"]),
            ({"kind": "sum"}, ["mid.add"]),
            ({"kind": "sum", "level": ["middle", "early"]}, ["mid.add"]),
            ({"owner": ""}, ["cat"]),
            ({"owner": "TwoBranch"}, ["cat"]),
            ({"owner": "**"}, ["mid.add", "cat"]),
            ({"owner": "re:m.d"}, ["mid.add"]),
            ({"between": ["colored", "gray"]}, ["mid.add", "cat"]),
            ({"nth": 0}, ["mid.add"]),
            ({"nth": -1}, ["cat"]),
            ({"nth": [0, 1]}, ["mid.add", "cat"]),
            ({"level": "late", "nth": 0}, ["cat"]),
        ],
    )
    def test_matching(self, match, chosen):
        plan = plan_of(two_points(), {"id": "r", "match": match, "normalize": "gray"})
        assert [s.point for s in plan.sites] == chosen

    def test_between_wants_the_modalities_in_different_branches(self):
        found = inspection(point("cat", side("image+text"), side("audio")), modalities=("image", "text", "audio"))
        rule = {"id": "r", "normalize": "audio"}
        assert len(plan_of(found, {**rule, "match": {"between": ["image", "audio"]}}).sites) == 1
        text = refused(found, {**rule, "match": {"between": ["image", "text"]}}, error=NothingMatchedError)
        assert "what meets is image+text with audio, not image with text" in text

    def test_similarity_loss_and_remeeting_are_taken_only_by_name(self):
        found = inspection(
            point("sim", GRAY, COLORED, kind="similarity", selected_by_default=False),
            point("again", GRAY, COLORED, level="remeeting", selected_by_default=False),
            point("cat", GRAY, COLORED),
        )
        assert [s.point for s in plan_of(found, ALL).sites] == ["cat"]
        assert [s.point for s in plan_of(found, {**ALL, "match": {"kind": "similarity"}}).sites] == ["sim"]
        assert [s.point for s in plan_of(found, {**ALL, "match": {"kind": "concat"}}).sites] == ["cat"]
        assert [s.point for s in plan_of(found, {**ALL, "match": {"level": "remeeting"}}).sites] == ["again"]
        reasons = {d.point: d.reason for d in plan_of(found, ALL).decisions}
        assert "`kind: similarity`" in reasons["sim"]
        assert "`level: remeeting`" in reasons["again"]


class TestNothingMatched:
    def test_names_rule_clause_and_what_is_there(self):
        text = "version: 1\nrules:\n  - id: late\n    match: {kind: concat, owner: fusoin}\n    normalize: gray\n"
        with pytest.raises(NothingMatchedError) as caught:
            decide(Rules.from_text(text, "r.yaml"), two_points())
        message = str(caught.value)
        assert message.startswith("r.yaml:4:34: rule `late` matches no fusion point")
        assert "nearest: `cat`: owner is the root (`TwoBranch`), which `fusoin` does not match" in message
        assert "found: `mid.add` (sum, middle, owner mid, gray with colored)" in message
        assert caught.value.exit_code == 1

    def test_a_long_list_of_points_is_cut(self):
        found = inspection(*(point(f"p{i}", GRAY, COLORED) for i in range(23)))
        text = refused(found, {**ALL, "match": {"kind": "sum"}}, error=NothingMatchedError)
        assert "found: `p19`" in text
        assert text.endswith("and 3 more")
        assert "more" not in refused(two_points(), {**ALL, "match": {"kind": "scatter"}}, error=NothingMatchedError)

    def test_a_model_without_points_says_so(self):
        found = inspection(notes=("`gray` never meets `colored`",))
        text = refused(found, ALL, error=NothingMatchedError)
        assert "the model has none" in text
        assert "`gray` never meets `colored`" in text

    def test_a_shadowed_rule_names_who_took_its_points(self):
        first = {**ALL, "match": {"owner": ["", "mid"]}}  # all there is, which only the model can tell
        text = refused(
            two_points(), first, {**ALL, "id": "late", "match": {"level": "late"}}, error=NothingMatchedError
        )
        assert "rule `late` has nothing left to match" in text
        assert "`cat` by rule `all`" in text

    def test_exclude_and_override_that_match_nothing(self):
        text = refused(
            two_points(), ALL, exclude=[{"owner": "nowhere"}], overrides={"cta": {}}, error=NothingMatchedError
        )
        assert "exclude[0] matches no fusion point" in text
        assert "no fusion point has that id; did you mean `cat`?" in text

    def test_override_of_a_point_that_is_not_normalised(self):
        rule = {**ALL, "match": {"level": "late"}}
        text = refused(two_points(), rule, overrides={"mid.add": {}}, error=NothingMatchedError)
        assert "changes nothing, since it is not normalised: no rule matches it" in text

    def test_strict_warn_makes_notes_of_them(self):
        plan = plan_of(two_points(), ALL, {**ALL, "id": "x", "match": {"kind": "scatter"}}, strict="warn")
        (warning,) = plan.warnings
        assert "rule `x` matches no fusion point" in warning
        assert len(plan.sites) == 2

    def test_expect(self):
        assert len(plan_of(two_points(), {**ALL, "expect": 2}).sites) == 2
        assert len(plan_of(two_points(), {**ALL, "expect": {"min": 1}}).sites) == 2
        assert "expects exactly 1, but selects 2: `mid.add` and `cat`" in refused(two_points(), {**ALL, "expect": 1})
        none = {**ALL, "id": "x", "match": {"kind": "scatter"}, "expect": {"max": 2}}
        assert len(plan_of(two_points(), none, ALL).sites) == 2


class TestDirection:
    @pytest.mark.parametrize(
        ("said", "f"),
        [
            ({"normalize": "gray"}, "gray"),
            ({"normalize": "colored"}, "colored"),
            ({"against": "gray"}, "colored"),
            ({"normalize": "colored", "against": "gray"}, "colored"),
            ({"pairs": "all"}, "gray"),
        ],
    )
    def test_one_of_two_branches_implies_the_other(self, said, f):
        (planned,) = plan_of(inspection(point("cat", GRAY, COLORED)), {"id": "r", "match": {}, **said}).sites
        assert planned.f.home == (f,)
        assert planned.g.home == ({"gray": "colored", "colored": "gray"}[f],)

    def test_undecided_gives_both_lines(self):
        text = refused(inspection(point("cat", GRAY, COLORED)), {"id": "r", "match": {}})
        assert "    normalize: gray\n    normalize: colored" in text

    def test_re_entry_is_told_apart_by_the_modality_that_only_one_side_has(self):
        found = inspection(point("add", side("gray"), side("gray+colored")))
        assert plan_of(found, {**ALL, "normalize": "colored"}).sites[0].f.home == ("gray", "colored")
        assert plan_of(found, {**ALL, "normalize": "gray"}).sites[0].f.home == ("gray",)
        text = refused(found, {"id": "r", "match": {}})
        assert "    normalize: gray\n    normalize: gray+colored" in text

    def test_equal_homes_need_a_pair_rule(self):
        found = inspection(point("cat", side("gray+colored"), side("gray+colored"), level="remeeting"))
        for said in ({"normalize": "gray"}, {"pairs": "all"}):
            text = refused(found, {"id": "r", "match": {"level": "remeeting"}, **said})
            assert "names cannot distinguish f from g" in text

    def test_three_branches_need_both_or_all_pairs(self):
        sides = (side("text"), side("image"), side("audio"))
        found = inspection(point("cat", *sides), modalities=("image", "text", "audio"))
        assert "write both `normalize:` and `against:`, or `pairs: all`" in refused(
            found, {"id": "r", "match": {}, "normalize": "image"}
        )
        (only,) = plan_of(found, {"id": "r", "match": {}, "normalize": "audio", "against": "text"}).sites
        assert (only.f.home, only.g.home) == (("audio",), ("text",))
        pairs = plan_of(found, {"id": "r", "match": {}, "pairs": "all"}).sites
        assert [(p.f.home[0], p.g.home[0]) for p in pairs] == [
            ("image", "text"), ("image", "audio"), ("text", "audio"),
        ]  # fmt: skip

    def test_a_modality_that_is_elsewhere_is_no_direction(self):
        found = inspection(point("cat", GRAY, COLORED), modalities=("gray", "colored", "sound"))
        text = refused(found, {"id": "r", "match": {}, "normalize": "sound"})
        assert "`normalize: sound` does not fit what meets there (gray with colored)" in text

    def test_unknown_modality_is_an_error_of_the_rules(self):
        text = refused(two_points(), {**ALL, "normalize": "grey"}, error=RulesError)
        assert "there is no modality `grey`; did you mean `gray`?" in text

    def test_a_gate_is_never_normalised(self):
        gated = site(GRAY, COLORED, gate=1)
        found = inspection(point("mul", GRAY, COLORED, kind="product", sites=(gated,)))
        assert "`colored` only gates `gray`" in refused(found, {**ALL, "normalize": "colored"})
        assert refused(found, {"id": "r", "match": {}}).endswith(
            "the other side only gates, so write:\n    normalize: gray"
        )
        assert plan_of(found, ALL).sites[0].f.home == ("gray",)
        swapped = inspection(point("mul", GRAY, COLORED, sites=(site(GRAY, COLORED, gate=0),)))
        assert plan_of(swapped, {"id": "r", "match": {}, "pairs": "all"}).sites[0].f.home == ("colored",)


class TestSites:
    def test_names_are_identifiers_and_unique_in_their_host(self):
        twice = point("x.cat", GRAY, COLORED, owner="x", sites=(site(GRAY, COLORED, "x"), site(GRAY, COLORED, "x")))
        found = inspection(twice, point("y.cat", GRAY, COLORED, owner="y"))
        plan = plan_of(found, {**ALL, "id": "no-gates.1"})
        names = [(s.host, s.name) for s in plan.sites]
        assert names == [("x", "regbn_no_gates_1"), ("x", "regbn_no_gates_1_1"), ("y", "regbn_no_gates_1")]

    def test_defaults_rule_and_override_are_merged_in_this_order(self):
        plan = plan_of(
            two_points(),
            {**ALL, "regbn": {"momentum": 0.1, "affine": True}, "reduce": "mean"},
            defaults={"regbn": {"momentum": 0.3, "beta1": 0.5}, "replace": "f", "reduce": "flatten"},
            overrides={"cat": {"regbn": {"momentum": 0.2}, "reduce": "flatten", "normalize": "colored"}},
        )
        mid, late = plan.sites
        assert dict(mid.options) == {"momentum": 0.1, "beta1": 0.5, "affine": True}
        assert dict(late.options) == {"momentum": 0.2, "beta1": 0.5, "affine": True}
        assert (mid.reduce, late.reduce) == ("mean", "flatten")
        assert (mid.replace, late.replace) == ("f", "f")
        assert (mid.f.home, late.f.home) == (("gray",), ("colored",))

    def test_reduce_comes_from_the_site_unless_said(self):
        tokens = site(side("gray", (8, 7, 32), TOKENS), side("colored", (8, 9, 16), TOKENS), reduce="mean")
        found = inspection(point("cross", *tokens.sides, kind="attention", sites=(tokens,)))
        (planned,) = plan_of(found, ALL).sites
        assert planned.reduce == "mean"
        assert planned.projection_shape == (16, 32)
        (planned,) = plan_of(found, {**ALL, "reduce": "flatten"}).sites
        assert planned.projection_shape == (16 * 9, 32 * 7)

    def test_what_stands_in_the_way_is_said_all_at_once(self):
        blocked = site(GRAY, COLORED, obstacle="the batch is folded into the heads")
        found = inspection(
            point("a", GRAY, COLORED, sites=(blocked,)),
            point("b", side("gray", (8, 28, 28), UNKNOWN, "argument `x`"), COLORED),
        )
        text = refused(found, ALL)
        assert text.startswith("2 problems:")
        assert "at `a`: RegBN cannot go there: the batch is folded into the heads" in text
        assert "at `b`: the channel axis of argument `x` (8×28×28, of gray) is unknown" in text
        assert "evidence: reshaped from (8, 28, 28)" in text

    def test_stated_sizes_are_checked(self):
        found = inspection(point("cat", GRAY, COLORED))
        good = {**ALL, "regbn": {"f_num_channels": 96, "g_layer_dim": []}}
        assert dict(plan_of(found, good).sites[0].options) == {}
        text = refused(found, {**ALL, "regbn": {"g_num_channels": 64}})
        assert "`g_num_channels` is stated as 64, but is 96" in text

    def test_options_that_contradict_each_other_after_merging(self):
        text = refused(
            inspection(point("cat", GRAY, COLORED)),
            {**ALL, "regbn": {"form": "primal"}},
            overrides={"cat": {"regbn": {"projection": "low_rank"}}},
        )
        assert "form='primal'" in text

    def test_a_projection_too_large_gives_its_size_and_the_remedies(self):
        big = [side(name, (8, 64, 56, 56), MAP) for name in ("gray", "colored")]
        found = inspection(point("cat", *big))
        text = refused(found, ALL)
        assert "200704 x 200704 entries, 150.1 GiB" in text
        assert "projection: low_rank" in text
        assert len(plan_of(found, {**ALL, "regbn": {"projection": "low_rank"}}).sites) == 1
        assert len(plan_of(found, {**ALL, "reduce": "mean"}).sites) == 1

    def test_advice(self):
        plan = plan_of(two_points(), ALL)
        assert any("normalised against colored at 2 points" in note for note in plan.notes)
        assert any("normalize_output: false" in note for note in plan.notes)
        quiet = plan_of(two_points(), {**ALL, "match": {"nth": 0}, "regbn": {"normalize_output": False}})
        assert quiet.notes == ()


class TestPairs:
    RULE = {"id": "early", "pair": {"f": "input:gray", "g": "input:colored"}}  # noqa: RUF012

    def test_a_pair_is_resolved_by_the_caller(self):
        asked = []

        def resolve(f: str, g: str, replaced: str) -> PairSides:
            asked.append((f, g))
            return PairSides("", side("gray", (8, 1, 28, 28), MAP), side("colored", (8, 3, 28, 28), MAP))

        plan = decide(rules_of({**self.RULE, "replace": "f"}), two_points(), resolve)
        (planned,) = plan.sites
        assert asked == [("input:gray", "input:colored")]
        assert (planned.name, planned.host, planned.point) == ("regbn_early", "", None)
        assert planned.pair == ("input:gray", "input:colored")
        assert (planned.f_layer_dim, planned.reduce, planned.replace) == ((28, 28), "flatten", "f")
        assert planned.projection_shape == (3 * 28 * 28, 28 * 28)
        assert [d.action for d in plan.decisions] == ["leave", "leave"]

    def test_tokens_are_averaged_by_default(self):
        def resolve(f: str, g: str, replaced: str) -> PairSides:
            return PairSides("", side("gray", (8, 7, 32), TOKENS), GRAY)

        assert decide(rules_of(self.RULE), two_points(), resolve).sites[0].reduce == "mean"

    def test_what_cannot_be_resolved_is_told_with_the_rule(self):
        def resolve(f: str, g: str, replaced: str) -> PairSides:
            raise PlanError(f"there is no input `{f}`")

        with pytest.raises(PlanError, match=r"rules\[0\]\.pair\.f: rule `early`: there is no input"):
            decide(rules_of(self.RULE), two_points(), resolve)

    def test_unknown_layout(self):
        def resolve(f: str, g: str, replaced: str) -> PairSides:
            return PairSides("", side("gray", (8, 28, 28), UNKNOWN), GRAY)

        with pytest.raises(PlanError, match="channel axis of input:gray"):
            decide(rules_of(self.RULE), two_points(), resolve)


def test_inspection_and_rules_are_left_as_they_were():
    found, rules = two_points(), rules_of(ALL)
    assert decide(rules, found) == decide(rules, found)
    assert found == two_points()


def test_planning_needs_no_torch():
    code = "import sys; import regbn_surgery._plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
