"""A wheel, built and installed in a fresh environment, lists and uses the presets, far from the checkout."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from regbn_surgery._rules import preset_names

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

USE = """
import sys, torch, regbn_surgery
from torch import nn
assert regbn_surgery.__file__.startswith(sys.prefix), regbn_surgery.__file__

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(5, 4)
    def forward(self, a, b):
        return torch.cat([self.a(a), self.b(b)], dim=1)

model = regbn_surgery.regbnify(Late(), "late", {"a": torch.randn(4, 6), "b": torch.randn(4, 5)})
print([name for name, _ in model.named_children()])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="the wheel is built by hatchling, without the network")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_presets_are_inside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {Path(name).stem for name in archive.namelist() if name.startswith("regbn_surgery/_presets/")}
    assert set(preset_names()) <= inside


def test_installed(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    places = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
    packages = Path(sysconfig.get_path("purelib", vars=places))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # What the package needs comes from this environment; its editable install is no part of such a path.
    (packages / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = Path(sysconfig.get_path("scripts", vars=places)) / "python"

    def run(*arguments: str) -> str:
        done = subprocess.run([str(python), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = run("-m", "regbn_surgery", "presets")
    assert [line.split()[0] for line in listed.splitlines() if line[:1].strip()] == list(preset_names())
    assert "no problem found" in run("-m", "regbn_surgery", "check", "cross-attention")
    assert "regbn_late" in run("-c", USE)


def needed(wheel: Path) -> set[str]:
    """The distributions that a wheel needs when it runs, and what these need, without anything optional."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    todo = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    found: set[str] = set()
    while todo:
        asked, _, condition = todo.pop().partition(";")
        name = re.split(r"[^\w.-]", asked.strip())[0]
        if "extra" in condition or name in found:
            continue
        try:
            todo += metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            continue  # for another system, or another Python
        found.add(name)
    return found


#: Every command, as a user types it; MODEL is a file beside.
COMMANDS = (
    "--version", "presets", "presets late", "schema", "completion bash", "check late", "check late MODEL",
    "init MODEL -o mine.yaml", "check mine.yaml", "inspect MODEL", "inspect MODEL --format json", "plan MODEL late",
    "show MODEL late", "show MODEL late --format diff", "verify MODEL late", "diagnose --help", "sweep --help",
)  # fmt: skip


def test_every_command_runs_with_runtime_dependencies_alone(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    places = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
    packages = Path(sysconfig.get_path("purelib", vars=places))
    names = needed(wheel)
    assert {"torch", "numpy", "pydantic"} <= names
    assert not {"transformers", "matplotlib", "pytest", "scikit-learn"} & names
    for name in names:
        for file in metadata.files(name) or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    python = Path(sysconfig.get_path("scripts", vars=places)) / "python"
    (tmp_path / "model.py").write_bytes((ROOT / "examples" / "pmr" / "model.py").read_bytes())
    for line in COMMANDS:
        words = [word.replace("MODEL", "model.py:factory") for word in line.split()]
        done = subprocess.run(
            [str(python), "-m", "regbn_surgery", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (line, done.stderr[-2000:])
        assert done.stdout or done.stderr.startswith("wrote "), line
    assert (tmp_path / "mine.yaml").read_text().startswith("# yaml-language-server: $schema=")
