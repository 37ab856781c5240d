"""`sweep` from the shell: it trains, writes its files, goes on, and says what is wrong before it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from regbn_surgery._cli.commands import cli

CODE = """
import torch
from torch import nn

class TwoBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(8, 2)

    def forward(self, a, b):
        return self.head(torch.cat((self.a(a), self.b(b)), 1))

def build():
    return TwoBranches(), (torch.randn(4, 3), torch.randn(4, 2))

def train(model, seed):
    return {"buffers": len(list(model.buffers())) + seed}

number = 3
"""
RULES = "version: 1\nrules:\n  - {id: late, match: {kind: concat}, normalize: a, against: b}\n"


def call(more: str = "", train: str = "for_sweep.py:train") -> Result:
    line = f"sweep for_sweep.py:build --rules late.yaml --train {train} --seeds 0,1 -o out{more}"
    return CliRunner().invoke(cli, line.split())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "for_sweep.py").write_text(CODE)
    (tmp_path / "late.yaml").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep(here: Path) -> None:
    done = call()
    assert done.exit_code == 0, done.output
    assert "[0/6] none, seed 0" in done.stderr
    assert (here / "out" / "sweep.md").read_text() in done.stdout
    assert (here / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert [done.stderr.count(f"wrote out/sweep.{kind}") for kind in ("csv", "md", "png")] == [1, 1, 1]
    again = call()
    assert (again.exit_code, again.stdout) == (2, "")
    assert "--resume" in again.stderr
    assert call(" --resume").exit_code == 0


@pytest.mark.parametrize(
    ("more", "train", "says"),
    [
        (" --seeds 0,x", "for_sweep.py:train", "whole numbers"),
        (" --seeds -1", "for_sweep.py:train", "whole numbers"),
        (" --rules absent.yaml", "for_sweep.py:train", "absent.yaml"),
        ("", "for_sweep.py:number", "not a function"),
        ("", "for_sweep.py:trian", "train"),
    ],
)
def test_mistakes(here: Path, more: str, train: str, says: str) -> None:
    done = call(more, train)
    assert done.exit_code == 2
    assert says in done.stderr
    assert not (here / "out").exists()


#: Put before a line of the code above; the file is imported anew for each model, so that calls are counted outside.
FAILS = """    with open("calls", "a") as file:
        file.write("x")
    import pathlib
    if len(pathlib.Path("calls").read_text()) == COUNT:
        raise OSError("disk")
"""


@pytest.mark.parametrize(("before", "count"), [("    return {", "2"), ("    return TwoBranches(), ", "6")])
def test_an_error_of_the_users_function_is_told_as_theirs(here: Path, before: str, count: str) -> None:
    text = CODE.replace(before, FAILS.replace("COUNT", count) + before)
    (here / "for_sweep.py").write_text(text)
    done = call()
    assert done.exit_code == 2
    line = 1 + next(i for i, row in enumerate(text.splitlines()) if "raise OSError" in row)
    assert f"OSError: disk ({here / 'for_sweep.py'}:{line})" in done.stderr
    assert "with rules 'late' (late.yaml), seed 0," in done.stderr
    assert "unexpected error" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "1 finished run is kept in out/runs; continue there with resume=True (--resume)" in done.stderr
    (here / "for_sweep.py").write_text(CODE)
    assert call(" --resume").exit_code == 0


def test_a_stopped_sweep_says_how_to_continue(here: Path) -> None:
    stopped = FAILS.replace("COUNT", "3").replace('OSError("disk")', "KeyboardInterrupt")
    (here / "for_sweep.py").write_text(CODE.replace("    return {", stopped + "    return {"))
    done = call()
    assert done.exit_code != 0
    assert "finished runs are kept in out. The same command with --resume continues" in done.stderr
    assert call(" --resume").exit_code == 0


def test_results_of_another_sweep_are_not_overwritten(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "sweep.md").write_text("mine")
    done = call()
    assert (done.exit_code, done.stdout) == (2, "")
    assert "out/sweep.md: the file exists; --force overwrites it" in done.stderr
    assert call(" --force").exit_code == 0
    assert (here / "out" / "sweep.md").read_text() != "mine"


def test_a_file_in_place_of_the_folder(here: Path) -> None:
    (here / "out").write_text("mine")
    assert "this is a file; give the name of a folder" in call().stderr


def test_modalities_for_the_rules_that_name_none(here: Path) -> None:
    (here / "named.yaml").write_text(RULES + "modalities: {a: [a], b: [b]}\n")
    (here / "open.yaml").write_text(RULES.replace("normalize: a, against: b", "normalize: left, against: right"))
    both = " --rules named.yaml --rules open.yaml --no-control --seeds 0"
    command = f"sweep for_sweep.py:build --train for_sweep.py:train -o out{both}"
    said = ["--modality", "left=a", "--modality", "right=b"]
    done = CliRunner().invoke(cli, [*command.split(), *said])
    assert done.exit_code == 0, done.output
    assert "open" in done.stdout
    assert CliRunner().invoke(cli, [*command.split(), "--force"]).exit_code == 2  # who is `left`?
    none_is_open = command.replace(" --rules open.yaml", "").replace("-o out", "-o other")
    refused = CliRunner().invoke(cli, [*none_is_open.split(), *said])
    assert refused.exit_code == 2
    assert "the rules name the modalities themselves (a, b)" in refused.stderr


def test_two_files_of_one_name(here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "late.yaml").write_text(RULES)
    done = call(" --rules sub/late.yaml")
    assert done.exit_code == 2
    assert "--rules sub/late.yaml: another one is called 'late', too" in done.stderr
    assert not (here / "out").exists()
