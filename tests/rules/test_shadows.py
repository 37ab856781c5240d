"""Which match is implied by which: a rule is only called shadowed where no model could prove otherwise."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regbn_surgery import RulesError
from regbn_surgery._rules import Match, Rules
from regbn_surgery._rules.matching import select
from regbn_surgery._rules.shadows import covers

from ..plan.fakes import inspection, point, side


def match(**keys: Any) -> Match:
    return Match(**{key: tuple(value) if isinstance(value, list) else (value,) for key, value in keys.items()})


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({}, {"kind": "sum"}, True),
        ({"kind": "sum"}, {}, False),
        ({"kind": ["sum", "concat"]}, {"kind": "sum"}, True),
        ({"kind": "sum"}, {"kind": ["sum", "concat"]}, False),
        ({"owner": "**"}, {"owner": "a"}, True),
        ({"owner": "**"}, {"kind": "sum"}, True),
        ({"owner": "a.*"}, {"owner": "a.b"}, False),  # it does, and this is for the model to show
        ({"point": ["a", "b"]}, {"point": "a"}, True),
        ({"between": ["x", "y"]}, {"between": ["y", "x", "z"]}, True),
        ({"between": ["x", "y"]}, {"between": ["x", "z"]}, False),
        ({"nth": 0}, {"nth": 0}, True),
        ({"nth": 0}, {"nth": 0, "kind": "sum"}, False),
        ({}, {"nth": 0}, True),
        ({}, {"kind": "similarity"}, False),  # a rule takes it only by name
        ({"kind": "similarity"}, {"kind": "similarity"}, True),
        ({}, {"level": "remeeting"}, False),
    ],
)
def test_covers(first: dict[str, Any], second: dict[str, Any], expected: bool) -> None:
    assert covers(match(**first), match(**second), named=True) is expected


def test_skip_and_exclude_take_all_kinds() -> None:
    assert covers(match(), match(kind="similarity"), named=False)
    with pytest.raises(RulesError, match=r"rule `no` already takes every fusion point"):
        Rules.from_dict({"version": 1, "rules": [
            {"id": "no", "match": {}, "action": "skip"}, {"id": "sim", "match": {"kind": "similarity"}, "pairs": "all"},
        ]})  # fmt: skip


def test_under_warn_the_plan_tells_it() -> None:
    rules = [{"id": "a", "match": {}, "pairs": "all"}, {"id": "b", "match": {}, "pairs": "all"}]
    assert Rules.from_dict({"version": 1, "strict": "warn", "rules": rules}).rules


KINDS = ("sum", "concat", "similarity")
LEVELS = ("early", "late", "remeeting")
OWNERS = ("", "a", "a.b", "c")
POINTS = inspection(
    *(
        point(f"{owner}.{kind}.{level}".strip("."), side("gray"), side("colored"), owner=owner, kind=kind, level=level,
              selected_by_default=kind != "similarity" and level != "remeeting")
        for owner, kind, level in itertools.product(OWNERS, KINDS, LEVELS)
    )
)  # fmt: skip


def some(values: tuple[str, ...]) -> Any:
    return st.none() | st.lists(st.sampled_from(values), min_size=1, max_size=2).map(tuple)


MATCHES = st.builds(
    Match,
    kind=some(KINDS),
    level=some(LEVELS),
    owner=some(("", "a", "a.*", "**", "re:.*", "c")),
    between=st.none() | st.just(("gray", "colored")),
    nth=st.none() | st.just((0,)),
)


@given(MATCHES, MATCHES, st.booleans())
def test_what_is_covered_is_matched_on_every_model(first: Match, second: Match, named: bool) -> None:
    if covers(first, second, named=named):
        taken = {p.id for p in select(first, POINTS, naming=named).points}
        assert {p.id for p in select(second, POINTS, naming=True).points} <= taken
