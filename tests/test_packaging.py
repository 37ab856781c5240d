"""What surrounds the package: the hook for users' rules files, the citation, what the distributions hold."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

import regbn_surgery

ROOT = Path(regbn_surgery.__file__).parents[1]


def hooked(*files: Path) -> subprocess.CompletedProcess[str]:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    program, *arguments = shlex.split(hook["entry"])
    assert program == "python"
    command = [sys.executable, *arguments, *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_hook_tells_every_problem_of_every_file(tmp_path: Path) -> None:
    good, bad, worse = (tmp_path / f"{name}.yaml" for name in ("good", "bad", "worse"))
    good.write_text("version: 1\nrules: [{id: x, match: {kind: concat}}]\n")
    bad.write_text("version: 1\nrules: [{id: x, match: {kind: conct}}]\n")
    worse.write_text("version: 1\nruels: []\n")
    done = hooked(good, ROOT / "rules" / "late.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = hooked(good, bad, worse)
    assert done.returncode == 1
    assert "bad.yaml:2" in done.stderr
    assert "worse.yaml:2" in done.stderr
    assert "good.yaml" not in done.stderr


def test_the_citation_is_of_this_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["title"], citation["license"]) == ("regbn_surgery", "Apache-2.0")
    assert "RegBN" in citation["references"][0]["title"]


def test_contributing_names_targets_that_are_there() -> None:
    targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ":" in line}
    named = [
        line.split()[1] for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("make ")
    ]
    assert len(named) == 6
    assert set(named) <= targets


@pytest.mark.slow
def test_the_source_distribution_holds_what_its_tests_and_readers_need(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ("README.md", "LICENSE", "CITATION.cff", "CONTRIBUTING.md", "docs/evidence.png", "rules/late.yaml",
              "regbn_surgery/py.typed", "tests/test_packaging.py", "examples/pmr/model.py")  # fmt: skip
    assert [name for name in wanted if name not in inside] == []
    assert not [name for name in inside if name.startswith((".venv", ".versions"))]
