"""One bad point keeps RegBN from no other: it is left out and told, and an error where the rules say `strict: true`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from regbn_surgery import Plan, PlanError, RegBN, RegBNWarning, RewriteError, _leaving_out, inspect, plan, regbnify
from regbn_surgery._starter import starter_rules
from regbn_surgery._surgery import perform

from .cases.test_rows import FULL


class OneBadPoint(nn.Module):
    """Two places where the streams meet: one is right, at the other no axis is known to hold channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(6, 8), nn.Linear(16, 2)

    def forward(self, a: Tensor, b: Tensor, raw_a: Tensor, raw_b: Tensor) -> Tensor:
        z: Tensor = self.head(torch.cat([self.a(a), self.b(b)], dim=1))
        return z + (raw_a + raw_b).sum(dim=(1, 2))[:, None]


EXAMPLE = (torch.randn(4, 5), torch.randn(4, 6), torch.randn(4, 3, 7), torch.randn(4, 3, 7))
MODALITIES = {"a": ["a", "raw_a"], "b": ["b", "raw_b"]}


def rules(**more: Any) -> dict[str, Any]:
    rule = {"id": "all", "match": {"kind": ["concat", "sum"]}, "normalize": "a", "regbn": FULL}
    return {"version": 1, "modalities": MODALITIES, "rules": [rule], **more}


def names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, RegBN)]


def test_the_other_points_go_in_and_the_bad_one_is_told_with_its_reason() -> None:
    model = OneBadPoint().eval()
    found = inspect(model, EXAMPLE, MODALITIES)
    assert [point.sites[0].obstacle is None for point in found.fusion_points if point.level != "remeeting"] == [
        True,
        False,
    ]
    with pytest.warns(RegBNWarning, match=r"left out: .*`add`.*the channel axis of .*is not known: no layer"):
        result = regbnify(model, rules(), EXAMPLE)
    assert names(result) == ["regbn_all.regbn"]
    torch.testing.assert_close(result(*EXAMPLE), model(*EXAMPLE))
    with pytest.warns(RegBNWarning):
        made = plan(model, rules(), EXAMPLE)
    assert [site.point for site in made.sites] == ["cat"]
    (told,) = made.warnings
    assert "action: skip" in told
    (decision,) = (decision for decision in made.decisions if decision.point == "add")
    assert (decision.action, decision.rule) == ("leave", "all")
    assert "left out" in str(made)


@pytest.mark.parametrize("strict", [True, "warn", None])
def test_strict_keeps_the_error(strict: Any) -> None:
    said = {} if strict is None else {"strict": strict}
    if strict is True:
        for function in (plan, regbnify):
            with pytest.raises(PlanError, match="the channel axis of"):
                function(OneBadPoint(), rules(**said), EXAMPLE)
        return
    with pytest.warns(RegBNWarning, match="left out"):
        assert names(regbnify(OneBadPoint(), rules(**said), EXAMPLE))


def test_nothing_that_could_go_in_is_an_error() -> None:
    said = rules()
    said["rules"][0]["match"] = {"kind": "sum"}
    with pytest.raises(PlanError, match="the channel axis of"):
        regbnify(OneBadPoint(), said, EXAMPLE)


def test_a_rule_that_matches_nothing_is_an_error_as_before() -> None:
    said = rules()
    said["rules"].append({"id": "none", "match": {"kind": "attention"}, "normalize": "a"})
    with pytest.raises(PlanError, match="`none` matches no fusion point"):
        regbnify(OneBadPoint(), said, EXAMPLE)


def test_the_first_rules_file_has_the_bad_point_as_a_comment() -> None:
    text = starter_rules(OneBadPoint(), EXAMPLE, MODALITIES)
    assert "# Not possible as it is: RegBN cannot go there: the channel axis of" in text
    assert names(regbnify(OneBadPoint(), yaml.safe_load(text), EXAMPLE)) != []


class Deep(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Fuse() for _ in range(count))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([part(a, b) for part in self.parts]).sum(0)


class Fuse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(6, 8), nn.Linear(16, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        found: Tensor = self.head(torch.cat([self.a(a), self.b(b)], dim=1))
        return found


def refusing(*bad: str) -> Callable[[nn.Module, Plan, Any], None]:
    """The surgery, which fails as a whole where it comes to one of some points."""

    def performed(model: nn.Module, made: Plan, analysis: Any) -> None:
        met = [site.point for site in made.sites if site.point in bad]
        if met:
            raise RewriteError(f"the self-check failed at {met[0]}")
        perform(model, made, analysis)

    return performed


@pytest.mark.parametrize("bad", [(1,), (0, 4), (2, 3, 4), (0, 1, 2, 3)])
def test_a_point_that_does_not_bear_the_surgery_keeps_it_from_no_other(
    monkeypatch: pytest.MonkeyPatch, bad: tuple[int, ...]
) -> None:
    monkeypatch.setattr(_leaving_out, "perform", refusing(*(f"parts.{i}.cat" for i in bad)))
    model, example = Deep(5).eval(), (torch.randn(4, 5), torch.randn(4, 6))
    said = {"version": 1, "rules": [{"id": "all", "match": {"kind": "concat"}, "normalize": "a", "regbn": FULL}]}
    with pytest.warns(RegBNWarning) as told:
        result = regbnify(model, said, example)
    assert sorted(str(warning.message) for warning in told) == [
        f"RB103 left out: RegBN cannot go to `parts.{i}.cat` (parts.{i}.regbn_all): "
        f"the self-check failed at parts.{i}.cat"
        for i in bad
    ]
    good = [i for i in range(5) if i not in bad]
    assert names(result) == [f"parts.{i}.regbn_all.regbn" for i in good]
    torch.testing.assert_close(result(*example), model(*example))
    made = plan(model, said, example)
    assert [site.point for site in made.sites] == [f"parts.{i}.cat" for i in good]
    assert len(made.warnings) == len(bad)
    with pytest.raises(RewriteError, match="the self-check failed"):
        regbnify(model, {**said, "strict": True}, example)
    assert names(model) == []


def test_a_model_in_which_nothing_bears_the_surgery_is_refused_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_leaving_out, "perform", refusing("parts.0.cat", "parts.1.cat"))
    model, example = Deep(2), (torch.randn(4, 5), torch.randn(4, 6))
    said = {"version": 1, "rules": [{"id": "all", "match": {"kind": "concat"}, "normalize": "a"}]}
    with pytest.raises(RewriteError, match=r"the self-check failed at parts\.0\.cat"):
        regbnify(model, said, example, inplace=True)
    assert names(model) == []
