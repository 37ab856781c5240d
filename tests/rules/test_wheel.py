"""A wheel, built and installed in a fresh environment, lists and uses the presets, far from the checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
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
