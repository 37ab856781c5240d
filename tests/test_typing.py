"""What a type checker says of a user's file: models keep their class, results have types, mistakes are seen."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import regbn_surgery

ROOT = Path(regbn_surgery.__file__).parents[1]
USERS_FILE = """
import torch
from torch import nn

from regbn_surgery import (
    Inspection, Inputs, Plan, Recipe, RegBN, SurgeryReport, Verification, convert_sync_regbn, explain, fold, freeze,
    inspect, load_regbn, plan, regbnify, save_regbn, unregbnify, verify,
)


class Net(nn.Module):
    def mine(self) -> int:
        return 1


net = Net()
example = (torch.rand(4, 3), torch.rand(4, 2))
rewritten: Net = regbnify(net, "rules.yaml", example)
a: int = regbnify(net, {"version": 1}, Inputs(*example)).mine()
b: int = unregbnify(rewritten).mine() + freeze(rewritten).mine() + fold(rewritten, example, inplace=True).mine()
c: int = load_regbn(Net(), "folder").mine() + Recipe.of(rewritten).apply(Net()).mine()
d: int = convert_sync_regbn(rewritten).mine()
save_regbn(rewritten, "folder")
seen: Inspection = inspect(net, example, {"image": ["a"]})
kinds: list[str] = [point.kind for point in seen.fusion_points]
made: Plan = plan(net, "late", example)
held: Verification = verify(rewritten, example)
told: SurgeryReport = explain(rewritten)
f, g = RegBN(3, 2)(*example)
"""
MISTAKES = """
reveal_type(seen)
regbnify(net, "rules.yaml", example).yours()
inspect(net, example, 3)
seen.pionts
"""
LINES = USERS_FILE.count("\n")


def write(folder: Path, mistakes: str = "") -> Path:
    file = folder / "users_file.py"
    file.write_text(USERS_FILE + mistakes)
    return file


def checked(tool: list[str], file: Path) -> subprocess.CompletedProcess[str]:
    around = {**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *tool, str(file)]
    return subprocess.run(command, capture_output=True, text=True, cwd=file.parent, env=around)


MYPY = ["mypy", "--strict", "--follow-imports=silent", "--cache-dir=cache"]


def test_mypy_passes_a_users_file_and_sees_its_mistakes(tmp_path: Path) -> None:
    found = checked(MYPY, write(tmp_path))
    assert found.returncode == 0, found.stdout + found.stderr
    found = checked(MYPY, write(tmp_path, MISTAKES))
    assert 'Revealed type is "regbn_surgery._types.Inspection"' in found.stdout
    wrong = [line for line in found.stdout.splitlines() if ": error:" in line]
    assert [int(line.split(":")[1]) - LINES for line in wrong] == [3, 4, 5], found.stdout


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_pyright_passes_a_users_file_and_sees_its_mistakes(tmp_path: Path) -> None:
    found = checked(["pyright", "--pythonpath", sys.executable], write(tmp_path))
    assert found.returncode == 0, found.stdout + found.stderr
    found = checked(["pyright", "--pythonpath", sys.executable], write(tmp_path, MISTAKES))
    wrong = {int(line.split(":")[1]) - LINES for line in found.stdout.splitlines() if " error: " in line}
    assert wrong == {3, 4, 5}, found.stdout
