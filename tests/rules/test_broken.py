"""A table of broken rules files, each with the exact message it gets: `broken/*.yaml` with `broken/*.txt`.

Those in `broken_on_a_model` are well formed, and cannot be applied to the model below.
`UPDATE_GOLDEN=1 pytest tests/rules/test_broken.py` writes the messages anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from regbn_surgery import RegBNError, Rules, RulesError, plan

HERE = Path(__file__).parent
ALONE = sorted(path.stem for path in (HERE / "broken").glob("*.yaml"))
ON_A_MODEL = sorted(path.stem for path in (HERE / "broken_on_a_model").glob("*.yaml"))


def golden(path: Path, text: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


def test_there_are_enough_and_every_message_has_its_file() -> None:
    assert len(ALONE) + len(ON_A_MODEL) >= 60
    for folder, names in (("broken", ALONE), ("broken_on_a_model", ON_A_MODEL)):
        assert sorted(path.stem for path in (HERE / folder).glob("*.txt")) == names


@pytest.mark.parametrize("name", ALONE)
def test_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE / "broken")
    with pytest.raises(RulesError) as caught:
        Rules.from_file(f"{name}.yaml")
    golden(Path(f"{name}.txt"), str(caught.value))


class Encoder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x))


class Fusion(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([a, b], dim=1)


class ThreeBranches(nn.Module):
    """A sum in the middle, a gate on what comes of it, and a concatenation at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.gray, self.colored = Encoder(1), Encoder(3)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.sound, self.gate = nn.Linear(6, 4), nn.Linear(6, 4)
        self.fusion = Fusion()
        self.head = nn.Linear(8, 2)

    def forward(self, gray: torch.Tensor, colored: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        maps = self.second(self.gray(gray) + self.colored(colored))
        gated = maps.mean(dim=(2, 3)) * torch.sigmoid(self.gate(sound))
        return self.head(self.fusion(gated, self.sound(sound)))


def example() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"gray": (4, 1, 8, 8), "colored": (4, 3, 8, 8), "sound": (4, 6)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", ON_A_MODEL)
def test_message_on_a_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE / "broken_on_a_model")
    torch.manual_seed(0)
    with pytest.raises(RegBNError) as caught:
        plan(ThreeBranches(), f"{name}.yaml", example())
    golden(Path(f"{name}.txt"), f"{type(caught.value).__name__}: {caught.value}")


def test_the_model_can_be_planned_for() -> None:
    rules = {"version": 1, "rules": [{"id": "all", "match": {}, "pairs": "all"}]}
    assert [site.point for site in plan(ThreeBranches(), rules, example()).sites] == ["add", "mul", "fusion.cat"]
