"""A plan to JSON and back: the same plan, and a clear word on what is none."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from regbn_surgery import PlanError
from regbn_surgery._plan import PairSides, decide
from regbn_surgery._rules import Rules
from regbn_surgery._types import Plan

from .fakes import MAP, inspection, point, side, site


def made() -> Plan:
    found = inspection(
        point(
            "mul", side("gray"), side("colored"), kind="product", sites=(site(side("gray"), side("colored"), gate=1),)
        ),
        point("cat", side("gray", (8, 6, 4, 4), MAP), side("colored")),
    )
    rules = [
        {"id": "all", "match": {}, "pairs": "all", "regbn": {"momentum": 0.5}, "fit": "running", "methods": "generate"},
        {"id": "in", "pair": {"f": "input:gray", "g": "input:colored"}},
    ]
    inputs = {"gray": {"shape": [8, 6]}, "ids": {"shape": [8, 7], "dtype": "int64", "range": [0, 9]}}
    sides = PairSides("", side("gray"), side("colored"))
    return decide(
        Rules.from_dict({"version": 1, "inputs": inputs, "rules": rules}), found, lambda f, g, replaced: sides
    )


def test_there_and_back() -> None:
    plan = made()
    assert len(plan.sites) == 3
    assert plan.sites[0].methods == ("generate",)
    assert Plan.from_dict(plan.to_dict()) == plan
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()


def test_only_plain_types() -> None:
    content = made().to_dict()
    assert json.loads(json.dumps(content)) == content
    assert content["plan_version"] == 1


def changed(path: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(made().to_dict())
    place: Any = content
    *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    for step in steps:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("plan_version", 2, "plan_version: this release reads version 1 of plans; found 2"),
        ("decisions/0/action", "normalise", "decisions[0].action: must be one of `normalize`, `skip` and `leave`"),
        ("decisions/0/others", {}, "decisions[0].others: a list is expected; found dict"),
        ("sites/0/f/shape/0", "8", "sites[0].f.shape[0]: int is expected; found str"),
        ("sites/0/f/shape/0", True, "sites[0].f.shape[0]: int is expected; found bool"),
        ("sites/0/replce", "f", "sites[0]: unknown key 'replce'; did you mean `replace`?"),
        ("sites/0/host", None, "sites[0]: the key 'host' is missing"),
        ("sites/0/site/sides", [], "sites[0].site.sides: a list of 2 is expected; found 0"),
        ("sites/0/options/momentun", 1, "sites[0].options: RegBN has no option 'momentun'; did you mean `momentum`?"),
        ("sites/0/options/momentum", float("nan"), "sites[0].options.momentum: a finite number is expected"),
        ("sites/0/point", None, "sites[0]: a site is at a `point` or at a `pair`"),
        ("sites", 3, "sites: a list is expected; found int"),
        ("inputs/gray", [], "inputs.gray: a mapping is expected; found list"),
        ("sites/0/f", [], "sites[0].f: a mapping is expected; found list"),
    ],
)
def test_what_is_no_plan(path: str, value: Any, says: str) -> None:
    if path == "sites/0/point":
        content = changed(path, None)
        content["sites"][0]["point"] = None
    else:
        content = changed(path, value)
    with pytest.raises(PlanError) as caught:
        Plan.from_dict(content)
    assert f"not a plan: {says}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100000, "3", "null"])
def test_text_that_is_no_plan(text: str) -> None:
    with pytest.raises(PlanError, match="not a plan"):
        Plan.from_json(text)
