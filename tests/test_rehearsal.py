"""What `plan` finds out beside the rules: tiers, independent pairs, trained weights, and what was made up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import regbn_surgery
from regbn_surgery import PlanError, RulesError
from regbn_surgery._facts import why_trained
from regbn_surgery._rehearsal import independence
from regbn_surgery._types import Plan

from .surgery.models import Late, build, everything, rules, vectors


class TwoLayers(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, width), nn.Linear(5, 4)
        self.norm = nn.LayerNorm(width)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.norm(self.a(a)), self.b(b)], dim=1)


RULES = {"version": 1, "rules": [{"id": "x", "match": {}, "normalize": "a"}]}


def example(samples: int, dependent: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(samples, 6, generator=generator)
    return {"a": a, "b": a[:, :5].clone() if dependent else torch.randn(samples, 5, generator=generator)}


def notes(made: Plan) -> str:
    return "\n".join(made.notes)


class TestTiers:
    def test_the_tier_is_the_one_that_the_surgery_takes(self) -> None:
        made = regbn_surgery.plan(build(Late), rules(), vectors())
        assert [site.tier for site in made.sites] == [2]

    def test_without_a_rehearsal_nobody_knows(self) -> None:
        made = regbn_surgery.plan(build(Late), rules(), vectors(), rehearse=False)
        assert [site.tier for site in made.sites] == [None]

    def test_a_surgery_that_fails_is_told(self) -> None:
        class Odd(Late):
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                self.calls = getattr(self, "calls", 0) + 1
                return super().forward(*args, **kwargs)

            def __deepcopy__(self, memo: Any) -> Any:
                raise TypeError("this cannot be copied")

        model = build(Odd)
        before = everything(model)
        made = regbn_surgery.plan(model, rules(), vectors())
        assert "tried on a copy, the surgery fails: Odd cannot be copied" in made.warnings[0]
        assert str(made).startswith("1 RegBN module planned, but the surgery fails (see RB106)")
        assert everything(model) == before


class TestStillSides:
    """A side that is all but constant: what is fitted on it is rounding."""

    @pytest.mark.parametrize("still", ["a", "b"])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_the_side_is_named(self, still: str, reverse: bool) -> None:
        model = build(TwoLayers)
        model.norm = nn.Identity()
        layer = getattr(model, still)
        with torch.no_grad():
            layer.weight.mul_(1e-6)
            layer.bias.fill_(1.0)
        asked = {"version": 1, "rules": [{"id": "x", "match": {}, "normalize": "b" if reverse else "a"}]}
        made = regbn_surgery.plan(model, asked, example(32, dependent=False))
        (told,) = (note for note in made.notes if note.startswith("RB121"))
        side = "f" if (still == "b") == reverse else "g"
        assert f"at regbn_x, {side} ({still}) hardly varies over the 32 samples" in told
        assert "RB118" not in notes(made)

    @pytest.mark.parametrize("samples", [4, 32])
    def test_sides_that_vary_are_not_told_of(self, samples: int) -> None:
        model = build(TwoLayers)
        with torch.no_grad():
            model.b.weight.mul_(1e-2)
            model.b.bias.fill_(1.0)
        assert "RB121" not in notes(regbn_surgery.plan(model, RULES, example(samples, dependent=True)))


class TestIndependence:
    def test_independent_features_are_told_of_and_dependent_ones_are_not(self) -> None:
        for dependent in (False, True):
            torch.manual_seed(0)  # in one model of several, chance makes two layers look dependent
            text = notes(regbn_surgery.plan(TwoLayers(), RULES, example(64, dependent)))
            assert ("look linearly independent in the 64 samples" in text) is not dependent

    @pytest.mark.parametrize("samples", [8, 300])
    def test_too_few_or_too_many_samples_are_not_asked(self, samples: int) -> None:
        assert "independent" not in notes(regbn_surgery.plan(TwoLayers(), RULES, example(samples, False)))

    def test_made_up_inputs_tell_nothing(self) -> None:
        made = regbn_surgery.plan(TwoLayers(), {**RULES, "inputs": {"a": {"shape": [64, 6]}, "b": {"shape": [64, 5]}}})
        assert "independent" not in notes(made)

    def test_the_p_value_is_uniform_where_nothing_goes_together(self) -> None:
        generator = torch.Generator().manual_seed(1)
        drawn = [torch.randn(2, 20, 30, generator=generator, dtype=torch.float64) for _ in range(200)]
        values = torch.tensor([independence(f, g) for f, g in drawn])
        # Kolmogorov-Smirnov distance of 200 draws from the uniform distribution: below 0.115 in 99 of 100 cases.
        steps = torch.arange(1, 201) / 200
        assert float((values.sort().values - steps).abs().max()) < 0.115

    def test_the_p_value_is_small_where_f_is_linear_in_g(self) -> None:
        generator = torch.Generator().manual_seed(2)
        g = torch.randn(40, 3, generator=generator, dtype=torch.float64)
        f = g @ torch.randn(3, 7, generator=generator, dtype=torch.float64)
        assert independence(f, g) == 1 / 200


def test_an_input_of_the_rules_that_forward_does_not_take() -> None:
    section = {"a": {"shape": [4, 6]}, "bb": {"shape": [4, 5]}}
    with pytest.raises(RulesError, match=r"inputs\.bb: `forward` has no parameter `bb`"):
        regbn_surgery.plan(TwoLayers(), {**RULES, "inputs": section})


class TestWeights:
    def test_fresh_weights(self) -> None:
        assert why_trained(TwoLayers()) is None
        assert "normalize_output" not in notes(regbn_surgery.plan(TwoLayers(), RULES, example(4, True)))

    def test_norms_that_have_moved(self) -> None:
        model = TwoLayers()
        torch.nn.init.normal_(model.norm.weight)
        assert why_trained(model) == "the weights of `norm` have moved from their start"
        assert "`regbn: {normalize_output: false}`" in notes(regbn_surgery.plan(model, RULES, example(4, True)))

    def test_statistics_of_batches(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(3))
        assert why_trained(model) is None
        model(torch.randn(4, 3))
        assert why_trained(model) == "`0` has seen 1 batches"

    def test_a_name_they_come_from(self) -> None:
        model = TwoLayers()
        model.name_or_path = "someone/some-model"  # type: ignore[assignment]
        assert why_trained(model) == "they come from 'someone/some-model'"


class TestPlansAreApplied:
    def test_exactly_even_where_the_rules_would_say_otherwise(self) -> None:
        made = regbn_surgery.plan(TwoLayers(), RULES, example(4, True))
        changed = dataclasses.replace(
            made,
            sites=tuple(dataclasses.replace(site, name="regbn_mine", options={"momentum": 0.5}) for site in made.sites),
        )
        model = regbn_surgery.regbnify(TwoLayers(), changed, example(4, True))
        assert model.regbn_mine.regbn.options.momentum == 0.5

    def test_the_other_direction(self) -> None:
        made = regbn_surgery.plan(TwoLayers(), {**RULES, "rules": [{"id": "x", "match": {}, "normalize": "b"}]},
                                  example(4, True))  # fmt: skip
        model = regbn_surgery.regbnify(TwoLayers(), Plan.from_json(made.to_json()), example(4, True))
        assert model.regbn_x.regbn.f_num_channels == 4

    @pytest.mark.parametrize("samples", [2, 9])
    def test_the_batch_size_of_the_example_does_not_count(self, samples: int) -> None:
        made = regbn_surgery.plan(TwoLayers(), RULES, example(4, True))
        assert regbn_surgery.regbnify(TwoLayers(), made, example(samples, True)).regbn_x

    def test_another_model_is_refused_with_what_differs(self) -> None:
        made = regbn_surgery.plan(TwoLayers(), RULES, example(4, True))
        with pytest.raises(PlanError) as caught:
            regbn_surgery.regbnify(TwoLayers(width=7), made, example(4, True))
        text = str(caught.value)
        assert "made for another model (TwoLayers), or for other inputs" in text
        assert "`cat` was concat (cat) by TwoLayers at the root, late: a 6 (operand 0 of cat) with b 4" in text
        assert "it is concat (cat) by TwoLayers at the root, late: a 7 (operand 0 of cat) with b 4" in text
        with pytest.raises(PlanError, match="the model is a Late, not a TwoLayers"):
            regbn_surgery.regbnify(build(Late), made, vectors())

    def test_a_pair_that_is_not_there_is_refused(self) -> None:
        pair = {"version": 1, "rules": [{"id": "p", "pair": {"f": "module:a", "g": "module:b"}}]}
        made = regbn_surgery.plan(TwoLayers(), pair, example(4, True))
        assert regbn_surgery.regbnify(TwoLayers(), made, example(4, True)).regbn_p
        moved = dataclasses.replace(made, sites=(dataclasses.replace(made.sites[0], pair=("module:a", "module:c")),))
        with pytest.raises(PlanError, match="no module 'c' is called"):
            regbn_surgery.regbnify(TwoLayers(), moved, example(4, True))
