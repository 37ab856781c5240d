"""An error of planning points at the key that is wrong, and what it tells to write is the whole remedy."""

from __future__ import annotations

import re

import pytest
import yaml

from regbn_surgery import PlanError, RegBNError
from regbn_surgery._plan import decide
from regbn_surgery._plan.facts import Facts
from regbn_surgery._rules import Rules
from regbn_surgery._types import Inspection

from .fakes import MAP, TOKENS, inspection, point, side, site

NAMES = ("gray", "colored", "sound")


def gate(f: str, g: str, kind: str = "product") -> Inspection:
    """`g` gates `f`."""
    sides = (side(f), side(g))
    return inspection(point("mul", *sides, kind=kind, sites=(site(*sides, gate=1),)), modalities=NAMES)


def cat(*homes: str) -> Inspection:
    return inspection(point("cat", *(side(home) for home in homes)), modalities=NAMES)


CAUSAL = Facts(causal=frozenset({"gray"}))
TOKEN_PAIR = inspection(point("cat", side("gray", (8, 5, 16), TOKENS), side("colored", (8, 7, 16), TOKENS)))
MAPS = inspection(point("cat", side("gray", (8, 64, 90, 90), MAP), side("colored", (8, 64, 90, 90), MAP)))


def message(found: Inspection, text: str, facts: Facts | None = None) -> str:
    with pytest.raises(RegBNError) as caught:
        decide(Rules.from_text("version: 1\n" + text, "r.yaml"), found, None, facts)
    return str(caught.value)


def pointed_at(text: str, error: str) -> str:
    """What stands in the file where the message points."""
    place = re.search(r"r\.yaml:(\d+):(\d+)", error)
    assert place is not None, error
    line = ("version: 1\n" + text).splitlines()[int(place[1]) - 1]
    return line[int(place[2]) - 1 :]


@pytest.mark.parametrize(
    ("found", "rules", "start", "facts"),
    [
        (gate("gray", "sound"), "- {id: a, match: {kind: product}, normalize: sound}", "sound}", None),
        (gate("gray", "sound"), "- {id: a, match: {kind: product}, against: gray}", "gray}", None),
        (gate("gray", "sound", "attention"), "- {id: a, match: {kind: attention}, against: gray}", "gray}", None),
        (gate("gray", "sound"), "- {id: a, match: {kind: product}}", "match:", None),
        (cat("gray", "colored"), "- {id: a, match: {}, normalize: sound}", "sound}", None),
        (cat("gray", "colored"), "- {id: a, match: {}, normalize: gray, against: sound}", "sound}", None),
        (cat("gray", "colored", "sound"), "- {id: a, match: {}, against: sound}", "sound}", None),
        (cat("gray", "colored", "sound"), "- {id: a, match: {}}", "match:", None),
        (cat("gray", "colored"), "- {id: a, match: {kind: concat, level: early}, pairs: all}", "early}", None),
        (cat("gray", "colored"), "- {id: a, match: {point: cta, kind: concat}, pairs: all}", "cta,", None),
        (cat("gray", "colored"), "- {id: a, match: {}, pairs: all, regbn: {g_num_channels: 7}}", "7}", None),
        (TOKEN_PAIR, "- {id: a, match: {}, against: gray}", "gray}", CAUSAL),
        (TOKEN_PAIR, "- {id: a, match: {}, normalize: colored, allow_noncausal: false}", "false}", CAUSAL),
        (MAPS, "- {id: a, match: {}, pairs: all, regbn: {projection: dense}}", "dense}", None),
        (MAPS, "- {id: a, match: {}, pairs: all}", "match:", None),
    ],
)
def test_the_key_that_is_wrong(found: Inspection, rules: str, start: str, facts: Facts | None) -> None:
    text = f"rules:\n  {rules}"
    assert pointed_at(text, message(found, text, facts)).startswith(start)


def test_an_override_and_the_defaults_are_pointed_at_where_they_say_it() -> None:
    text = "rules:\n- {id: a, match: {}, normalize: gray}\noverrides: {mul: {normalize: sound}}"
    assert pointed_at(text, message(gate("gray", "sound"), text)) == "sound}}"
    text = "rules:\n- {id: a, match: {}, against: gray}\noverrides: {cat: {regbn: {f_num_channels: 3}}}"
    assert pointed_at(text, message(cat("gray", "colored"), text)) == "3}}}"
    text = "defaults: {regbn: {f_num_channels: 3}}\nrules:\n- {id: a, match: {}, against: gray}"
    assert pointed_at(text, message(cat("gray", "colored"), text)) == "3}}"
    text = "defaults: {regbn: {form: primal}}\nrules:\n- {id: a, match: {}, against: gray}\n"
    text += "overrides: {cat: {regbn: {projection: low_rank}}}"
    assert pointed_at(text, message(cat("gray", "colored"), text)) == "primal}}"


@pytest.mark.parametrize(
    ("found", "keys", "facts"),
    [
        (gate("gray", "sound"), {"normalize": "sound"}, None),
        (gate("gray", "sound", "attention"), {"against": "gray"}, None),
        (gate("gray+colored", "gray"), {"normalize": "gray", "against": "colored"}, None),
        (gate("gray+colored", "colored+sound"), {}, None),
        (gate("gray+colored", "colored+sound"), {"normalize": "sound"}, None),
        (cat("gray", "colored"), {}, None),
        (cat("gray+colored", "gray"), {}, None),
        (cat("gray+colored", "colored+sound"), {"normalize": "colored"}, None),
        (cat("gray+colored", "colored+sound"), {"against": "colored"}, None),
        (cat("gray", "colored"), {"against": "sound"}, None),
        (TOKEN_PAIR, {"against": "gray"}, CAUSAL),
    ],
)
def test_what_the_message_tells_to_write_works(found: Inspection, keys: dict, facts: Facts | None) -> None:
    rule = {"id": "a", "match": {}, **keys}
    with pytest.raises(PlanError) as caught:
        decide(Rules.from_dict({"version": 1, "rules": [rule]}), found, None, facts)
    lines = re.findall(r"^    (\w+: \S+)$", str(caught.value), re.MULTILINE)
    assert lines, str(caught.value)
    for written in _alternatives(lines):
        fixed = {**{k: v for k, v in rule.items() if k not in written}, **written}
        assert decide(Rules.from_dict({"version": 1, "rules": [fixed]}), found, None, facts).sites


def _alternatives(lines: list[str]) -> list[dict]:
    """One for each `normalize`, with the lines below it."""
    out: list[dict] = []
    for line in lines:
        out = [*out, {}] if line.startswith("normalize") else out
        out[-1].update(yaml.safe_load(line))
    return out
