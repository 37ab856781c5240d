"""The table of notes: every code is made in one place, means one thing, and is on the page."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from collections import Counter
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regbn_surgery
from regbn_surgery import RegBNWarning, Rules, RulesError, inspect, plan, regbnify
from regbn_surgery._codes import KINDS, code_of, coded, is_minor, kept, page, text_of

PACKAGE = Path(regbn_surgery.__file__).parent


def made() -> Counter[str]:
    """How often each code is made in the package: the first argument of each call of `coded`."""
    codes: Counter[str] = Counter()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "coded":
                code = node.args[0]
                assert isinstance(code, ast.Constant), f"{file}: a code is written out, so that it can be found"
                codes[code.value] += 1
    return codes


def test_every_code_is_made_in_one_place() -> None:
    assert made() == Counter(dict.fromkeys(KINDS, 1))


def test_warnings_and_notes_are_made_with_codes() -> None:
    """Every warning of the package is given a note: made by `coded` there, or taken from a plan."""
    bare = []
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("warnings.warn", "warn_at_call"):
                text = ast.unparse(call.args[0])
                handed_on = file.name in ("_api.py", "_user_code.py")
                if "coded(" not in text and not handed_on and "coded(" not in _before(tree, call):
                    bare.append(f"{file.name}:{call.lineno}")
    assert bare == []


def _before(tree: ast.AST, call: ast.Call) -> str:
    """The statement before a call in its block, which may make its text."""
    for node in ast.walk(tree):
        body = getattr(node, "body", [])
        for first, second in itertools.pairwise(body) if isinstance(body, list) else ():
            if isinstance(second, ast.Expr) and second.value is call:
                return ast.unparse(first)
    return ""


def test_the_page_is_up_to_date() -> None:
    """`python -m regbn_surgery._codes > docs/notes.md` writes it."""
    written = (PACKAGE.parent / "docs" / "notes.md").read_text(encoding="utf-8")
    assert written == page()
    done = subprocess.run([sys.executable, "-m", "regbn_surgery._codes"], capture_output=True, text=True, check=True)
    assert done.stdout == page()
    assert all(f"| {code}" in written for code in KINDS)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        KINDS["RB001"] = KINDS["RB002"]  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        KINDS["RB001"].title = "something else"  # type: ignore[misc]
    assert len({kind.title for kind in KINDS.values()}) == len(KINDS)


def test_a_note_is_its_code_and_a_text() -> None:
    note = coded("RB002", "`a` never meets `b`")
    assert (note, code_of(note), text_of(note)) == ("RB002 `a` never meets `b`", "RB002", "`a` never meets `b`")
    assert (code_of("no code"), text_of("no code")) == ("", "no code")
    assert kept([note, "no code"], ["RB002"]) == ("no code",)
    assert not is_minor(note)
    with pytest.raises(KeyError):
        coded("RB999", "")


class Twice(nn.Module):
    """Two concatenations of the same two, and a value read on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        f, g = self.a(x), self.b(y)
        first = self.head(torch.cat((f, g), 1))
        return first + self.head(torch.cat((f * float(2), g), 1))


def example() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(4, 3), "y": torch.randn(4, 2)}


def rules(**more: Any) -> dict[str, Any]:
    return {"version": 1, "rules": [{"id": "r", "match": {"kind": "concat"}, "normalize": "x"}], **more}


class TestSwitchingOff:
    def test_in_a_rules_file(self) -> None:
        assert "RB114" in {code_of(note) for note in plan(Twice(), rules(), example()).notes}
        made = plan(Twice(), rules(ignore=["RB114"]), example())
        assert "RB114" not in {code_of(note) for note in made.notes}
        assert "RB114" not in str(made)
        assert made.ignore == ("RB114",)

    def test_warnings_of_regbnify_too(self, recwarn: pytest.WarningsRecorder) -> None:
        unused = {"id": "unused", "match": {"kind": "scatter"}, "normalize": "x"}
        loose = rules(strict="warn")
        loose["rules"].append(unused)
        regbnify(Twice(), loose, example())
        assert [str(w.message)[:6] for w in recwarn if w.category is RegBNWarning] == ["RB101 "]
        recwarn.clear()
        regbnify(Twice(), {**loose, "ignore": "RB101"}, example())
        assert [w for w in recwarn if w.category is RegBNWarning] == []

    def test_an_unknown_code_is_told_with_its_place(self) -> None:
        with pytest.raises(
            RulesError, match=r"r.yaml:2:10: ignore\[0\]: no note has the code `rb114`; did you mean `RB114`"
        ):
            Rules.from_text("version: 1\nignore: [rb114]\nrules: [{id: r, match: {kind: concat}}]\n", "r.yaml")
        with pytest.raises(RulesError, match="the list is empty"):
            Rules.from_dict(rules(ignore=[]))
        with pytest.raises(RulesError, match="no note has the code `RB9`"):
            Rules.from_dict(rules()).ignoring(["RB9"])

    def test_every_note_of_an_inspection_and_a_plan_has_a_code(self) -> None:
        found = inspect(Twice(), {**example()})
        assert all(code_of(note) in KINDS for note in found.to_dict()["notes"])
        assert all(code_of(note) in KINDS for note in plan(Twice(), rules(), example()).notes)


class Reads(Twice):
    def forward(self, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        scale = float(x.detach().abs().max().item() >= 0)
        return super().forward(x * scale, y)


def test_values_that_are_read_are_one_note_behind_the_others_and_shown_to_who_asks() -> None:
    found = inspect(Reads(), {**example(), "mask": torch.ones(4, 1)})
    codes = [code_of(note) for note in found.to_dict()["notes"]]
    assert codes.count("RB009") == 1
    assert codes[-1] == "RB009"
    assert "RB015" in codes
    assert "RB009" not in str(found)
    assert '1 more note: `to_dict()["notes"]` has it' in str(found)
