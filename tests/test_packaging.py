"""What surrounds the package: the hook for users' rules files, the citation, what the distributions hold."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
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
    assert len(named) == 7
    assert set(named) <= targets


README = """Text with a [guide](docs/guide.md#part), [home](https://example.org/a) and [below](#below).

![Left: a](docs/a.png) and words

```python
x = [name](docs/kept.md)
```
| [cell](../up.md), ![b](https://example.org/b.png) |
"""


def built_description(folder: Path, urls: str) -> str:
    """The long description in the metadata of a project with README above, built by our hook."""
    core = pytest.importorskip("hatchling.metadata.core")
    manager = pytest.importorskip("hatchling.plugin.manager")
    (folder / "README.md").write_text(README)
    shutil.copy(ROOT / "hatch_build.py", folder)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "x"\nversion = "1"\ndynamic = ["readme"]\n{urls}\n'
        '[tool.hatch.metadata.hooks.custom]\npath = "hatch_build.py"\n'
    )
    return str(core.ProjectMetadata(str(folder), manager.PluginManager()).core.readme)


def test_the_description_has_absolute_links_where_the_repository_has_an_address(tmp_path: Path) -> None:
    text = built_description(tmp_path, '[project.urls]\nRepository = "https://host.org/us/x/"')
    assert "[guide](https://host.org/us/x/blob/HEAD/docs/guide.md#part)" in text
    assert "![Left: a](https://host.org/us/x/raw/HEAD/docs/a.png)" in text
    assert "[home](https://example.org/a) and [below](#below)" in text
    assert "x = [name](docs/kept.md)" in text
    assert "![b](https://example.org/b.png)" in text


def test_the_description_has_no_dead_links_where_it_has_none(tmp_path: Path) -> None:
    text = built_description(tmp_path, '[project.urls]\nChat = "https://host.org/chat"')
    assert "Text with a guide, [home](https://example.org/a)" in text
    assert "docs/a.png" not in text
    assert "| cell, ![b](https://example.org/b.png) |" in text


@pytest.mark.parametrize("urls", ["", '[project.urls]\nSource = "https://host.org/us/x"\n'])
def test_what_is_built_of_this_project_has_no_relative_link(tmp_path: Path, urls: str) -> None:
    pytest.importorskip("hatchling")
    for name in ("README.md", "LICENSE", "hatch_build.py", "rules"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "regbn_surgery").mkdir()
    (tmp_path / "regbn_surgery" / "_version.py").write_text((ROOT / "regbn_surgery" / "_version.py").read_text())
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + urls)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "out")]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (built,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        head, _, text = archive.read(name).decode().partition("\n\n")
    assert "Description-Content-Type: text/markdown" in head
    assert text.count("\n## ") == (ROOT / "README.md").read_text().count("\n## ")
    plain = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    found = re.findall(r"\]\(([^)]*)\)", plain)
    assert not [target for target in found if not re.match(r"https?://|#", target)]
    assert bool(urls) == any(target.endswith("raw/HEAD/docs/evidence.png") for target in found)


@pytest.mark.slow
def test_the_source_distribution_holds_what_its_tests_and_readers_need(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ("README.md", "LICENSE", "CITATION.cff", "CONTRIBUTING.md", "docs/evidence.png", "rules/late.yaml",
              "hatch_build.py", "regbn_surgery/py.typed", "tests/test_packaging.py",
              "examples/pmr/model.py")  # fmt: skip
    assert [name for name in wanted if name not in inside] == []
    assert not [name for name in inside if name.startswith((".venv", ".versions"))]
