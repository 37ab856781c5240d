"""Names in a model come from anybody: no character of theirs that a terminal obeys gets through to it."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from rich.text import Text
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RegBNError, RegBNWarning, RulesError
from regbn_surgery._report.console import SafeConsole
from regbn_surgery._visible import visible

HOSTILE = "\x1b]0;title\x07\x1b[31mred\x9b2J\u202eback"
EXAMPLE = {"a": torch.randn(4, 6), "b": torch.randn(4, 5)}
MATCH = {"kind": "concat"}
RULES = {"version": 1, "rules": [{"id": "r", "match": MATCH, "normalize": "a", "against": "b"}]}


class Joined(nn.Module):
    def forward(self, f: Tensor, g: Tensor) -> Tensor:
        return torch.cat([f, g], dim=1)


class Hostile(nn.Module):
    """Both a layer and the owner of the fusion have names that speak to terminals."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 8)
        self.add_module(HOSTILE, nn.Linear(5, 8))
        self.add_module(f"{HOSTILE} too", Joined())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        joined: Tensor = self._modules[f"{HOSTILE} too"](self.left(a), self._modules[HOSTILE](b))  # type: ignore[misc]
        return joined


def is_harmless(text: str) -> bool:
    return text == visible(text)


def test_characters_that_act_are_spelled_out() -> None:
    assert visible(HOSTILE) == r"\x1b]0;title\x07\x1b[31mred\x9b2J\u202eback"
    assert visible("a\tb\nc é 中 \U0001f600") == "a\tb\nc é 中 \U0001f600"


def test_tables_plans_and_reports() -> None:
    model = Hostile()
    said = [regbn_surgery.inspect(model, EXAMPLE), regbn_surgery.plan(model, RULES, EXAMPLE)]
    said.append(regbn_surgery.explain(regbn_surgery.regbnify(model, RULES, EXAMPLE)))
    for report in said:
        assert is_harmless(str(report)), report
        assert r"\x1b" in str(report)
        assert is_harmless(repr(report))


def test_styles_of_our_own_stay() -> None:
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=True, color_system="standard", width=60)
    console.print(Text("\x1b[31mred", style="green"))
    assert out.getvalue().startswith("\x1b[32m\\x1b[31mred\x1b[0m")


def test_errors_and_warnings() -> None:
    assert is_harmless(str(RegBNError(f"no module is called {HOSTILE}")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(HOSTILE, RegBNWarning, stacklevel=1)
    assert is_harmless(str(caught[0].message))
    with pytest.raises(RulesError) as info:
        regbn_surgery.plan(Hostile(), {**RULES, HOSTILE: 1}, EXAMPLE)
    assert is_harmless(str(info.value))


def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "hostile.py").write_text("from tests.test_visible import EXAMPLE, Hostile\nmodel = Hostile()\n")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "regbn_surgery", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for view in ("table", "tree"):
        given = (f"{tmp_path}/hostile.py:model", "--inputs", f"{tmp_path}/hostile.py:EXAMPLE")
        done = run("inspect", *given, "--format", view)
        assert done.returncode == 0, done.stderr
        assert is_harmless(done.stdout)
    done = run("inspect", f"{tmp_path}/{HOSTILE[-8:]}.py:model")
    assert done.returncode == 2
    assert is_harmless(done.stderr)
