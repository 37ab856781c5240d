"""The options that choose lambda in rules files: in defaults, rules and overrides, alone and together."""

from __future__ import annotations

from typing import Any

import pytest

from regbn_surgery import Rules, RulesError


def rules(regbn: dict[str, Any], defaults: dict[str, Any] | None = None, over: dict[str, Any] | None = None) -> Rules:
    document: dict[str, Any] = {"version": 1, "rules": [{"id": "r", "match": {}, "pairs": "all", "regbn": regbn}]}
    if defaults is not None:
        document["defaults"] = {"regbn": defaults}
    if over is not None:
        document["overrides"] = {"cat": {"regbn": over}}
    return Rules.from_dict(document)


def test_what_goes_together_may_stand_apart() -> None:
    rules({"constraint": "fixed", "lam": 0.1, "lam_scale": "absolute", "centre": True})
    rules({"lam": 0.1}, defaults={"constraint": "fixed", "lam": 1.0})
    rules({"constraint": "gcv"}, over={"lam": 0.5, "constraint": "fixed"})
    rules({"constraint": "fixed", "lam": 0.1}, over={"lam": 0.5})
    rules({"constraint": "fixed"}, defaults={"lam": 0.5})
    rules({"projection": "low_rank"}, over={"rank": 8, "momentum": 0.1})  # judged with the rule, not by itself


@pytest.mark.parametrize(
    ("regbn", "message"),
    [
        ({"constraint": "gvc"}, "must be one of smoother, frobenius, fixed, gcv; found 'gvc'"),
        ({"constraint": "fixed"}, "needs lam"),
        ({"lam": 0.1}, "finds lambda itself"),
        ({"constraint": "fixed", "lam": -0.5}, "not negative, or null; found -0.5"),
        ({"center": True}, "did you mean `centre`"),
        ({"centre": "yes"}, "centre must be true or false; found 'yes'; write `true`"),
        ({"constraint": "gcv", "sigma_THR": 0.1}, "scores ridge fits"),
    ],
)
def test_what_contradicts_is_told(regbn: dict[str, Any], message: str) -> None:
    with pytest.raises(RulesError, match=message):
        rules(regbn)
