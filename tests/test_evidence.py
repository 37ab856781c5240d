"""`make evidence` says what it does, leaves the files of the documentation alone, and marks rough figures as such."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRACKED = ("docs/evidence.png", "docs/evidence/removed.csv", "examples/confounder/results/confounder.csv")


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The script, with experiments that are done at once and the folder of runs in `tmp_path`."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    import make_evidence

    shutil.copytree(ROOT / "docs/evidence", tmp_path / "docs/evidence")
    monkeypatch.setattr(make_evidence, "ROOT", tmp_path)
    monkeypatch.setattr(make_evidence.what_is_removed, "FACTORS", (1, 2))
    monkeypatch.setattr(make_evidence.what_is_removed, "BATCHES", (64,))
    monkeypatch.setattr(make_evidence.confounder, "FACTORS", (8,))
    monkeypatch.setattr(make_evidence.confounder, "RHOS", (0.95,))
    monkeypatch.setattr(make_evidence.confounder, "TEST", 400)
    tiny = make_evidence.Size(
        ("--steps", "2", "--seeds", "1"), ("--seeds", "1", "--rows", "130", "--epochs", "1"), "no time"
    )
    monkeypatch.setattr(make_evidence, "QUICK", tiny)
    monkeypatch.setattr(make_evidence, "FULL", tiny)
    yield make_evidence
    for name in set(sys.modules) - before:
        if name in ("make_evidence", "evidence", "what_is_removed", "confounder", "network", "removing", "world"):
            sys.modules.pop(name)


def test_it_writes_into_a_new_folder_each_time_and_says_what_it_does(
    evidence: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked = {name: (ROOT / name).read_bytes() for name in TRACKED}
    assert evidence.main([]) == evidence.main(["--quick"]) == 0
    for number in (1, 2):
        folder = tmp_path / f"runs/evidence-{number}"
        assert {"removed.csv", "evidence.png", "confounder"} <= {path.name for path in folder.iterdir()}
    assert {name: (ROOT / name).read_bytes() for name in TRACKED} == tracked
    out, progress = capsys.readouterr()
    for step in ("1 of 3", "2 of 3", "3 of 3", "batch 64: smoother", "seed 0 (1 of 1)", "runs/evidence-2"):
        assert step in progress
    assert 'ARGS="--update-docs"' in out


def test_quick_figures_are_said_to_be_rough(
    evidence: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    evidence.main(["--quick", "--out", str(folder)])
    assert capsys.readouterr().out.count("These figures are rough") == 2, "before and after the tables"
    assert "rough" in (folder / "README.md").read_text()
    other = tmp_path / "other"
    evidence.main(["--out", str(other)])
    assert not (other / "README.md").exists()
    assert (other / "evidence.png").read_bytes() != (folder / "evidence.png").read_bytes(), "the picture says it, too"
    assert (other / "removed.csv").read_bytes() == (folder / "removed.csv").read_bytes()


def test_only_the_flag_writes_over_the_documentation(
    evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = evidence.Places(tmp_path / "docs/evidence/removed.csv", tmp_path / "c", tmp_path / "docs/evidence.png")
    assert [path.relative_to(ROOT).as_posix() for path in (evidence.DOCS.picture, evidence.DOCS.removed)] == [
        *TRACKED[:2]
    ]
    monkeypatch.setattr(evidence, "DOCS", docs)
    before = docs.removed.read_bytes()
    evidence.main([])
    assert docs.removed.read_bytes() == before
    evidence.main(["--update-docs"])
    assert docs.removed.read_bytes() != before
    for wrong in (["--quick", "--update-docs"], ["--out", str(tmp_path)], ["--out", "new", "--update-docs"]):
        with pytest.raises(SystemExit):
            evidence.main(wrong)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
class TestMake:
    def dry(self, *line: str) -> str:
        done = subprocess.run(
            ["make", "-n", "-s", "VENV=absent", *line], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return done.stdout

    def test_setup_sets_up_and_does_nothing_else(self) -> None:
        told = self.dry("setup")
        assert "-m venv absent" in told
        assert "[dev]" in told
        assert "[examples]" in told
        assert not any(word in told for word in ("pytest", "PMR.py", "regbn-surgery"))

    def test_the_others_set_up_what_they_need(self) -> None:
        for target, extra in (("demo", "[examples]"), ("test", "[dev]")):
            told = self.dry(target)
            assert told.index("-m venv absent") < told.index(extra)

    def test_evidence_hands_its_flags_on(self) -> None:
        assert "make_evidence.py --quick" in self.dry("evidence", "ARGS=--quick")
        assert "--update-docs" not in self.dry("evidence")
