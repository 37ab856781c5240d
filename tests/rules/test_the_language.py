"""One file with every part of the language, on a model to which all of it applies; what each part did is looked up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import regbn_surgery
from regbn_surgery import NothingMatchedError, PlanError, RegBNWarning, Rules
from regbn_surgery._types import Plan
from regbn_surgery.nn import RegBN

FILE = Path(__file__).parent / "the_language.yaml"


class TextEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.words(ids).mean(dim=1)


class Join(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([a, b], dim=1)


class Side(nn.Module):
    """An auxiliary head, joined with the left half of x."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.ModuleDict({"join": Join()})

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.aux["join"](a, b)


class Everything(nn.Module):
    """gray and colored in layers, text gates gray, the left half of x meets text in a side head, cat at the end."""

    def __init__(self) -> None:
        super().__init__()
        convs = {"layer1": 1, "layer2": 4}
        self.visual = nn.ModuleDict({name: nn.Conv2d(n, 4, 3, stride=2, padding=1) for name, n in convs.items()})
        convs = {"layer1": 3, "layer2": 4}
        self.audio = nn.ModuleDict({name: nn.Conv2d(n, 4, 3, stride=2, padding=1) for name, n in convs.items()})
        self.text_encoder = TextEncoder()
        self.gate, self.left = nn.Linear(6, 1), nn.Linear(8, 5)
        self.side, self.fusion = Side(), Join()
        self.heads = nn.ModuleList([nn.Linear(8, 2), nn.Linear(11, 2)])

    def forward(
        self, gray: torch.Tensor, colored: torch.Tensor, ids: torch.Tensor, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text = self.text_encoder(ids)
        gray = self.visual["layer1"](gray)
        colored = self.audio["layer1"](colored)
        gray, colored = self.visual["layer2"](gray), self.audio["layer2"](colored)
        gray = gray.mean(dim=(2, 3)) * torch.sigmoid(self.gate(text))
        side = self.side(self.left(x[:, :8]), text)
        return self.heads[0](self.fusion(gray, colored.mean(dim=(2, 3)))), self.heads[1](side)


def example() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    floats = {"gray": (8, 1, 28, 28), "colored": (8, 3, 28, 28), "x": (8, 16)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in floats.items()}
    return {**made, "ids": torch.randint(0, 100, (8, 7), generator=generator)}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Everything()


@pytest.fixture(scope="module")
def made(model: nn.Module) -> Plan:
    return regbn_surgery.plan(model, FILE, example())


def test_modalities_are_inputs_globs_modules_and_slices(made: Plan) -> None:
    assert [(m.name, m.inputs, m.modules, m.slice) for m in made.modalities] == [
        ("gray", ("gray",), (), None),
        ("colored", ("colored",), (), None),
        ("text", (), ("text_encoder.**",), None),
        ("left", ("x",), (), (1, 0, 8)),
    ]


def test_every_point_is_decided_as_the_file_says(made: Plan) -> None:
    decided = {decision.point: (decision.action, decision.rule) for decision in made.decisions}
    assert decided == {
        "mul": ("skip", "no-gates"),
        "side.aux.join.cat": ("skip", None),
        "fusion.cat": ("normalize", "late"),
    }
    (gate,) = (decision for decision in made.decisions if decision.point == "mul")
    assert dict(gate.others)["late"].startswith("kind is product, not concat or sum; owner is the root")


def test_each_site_is_what_its_rule_asks_for(made: Plan) -> None:
    late, early, first, second = made.sites
    assert (late.point, late.f.home, late.g.home) == ("fusion.cat", ("gray",), ("colored",))
    assert dict(late.options) == {
        "momentum": 0.05,  # of the override, over 0.02 of the defaults
        "affine": True,  # of the defaults
        "normalize_input": False, "projection": "low_rank", "rank": 64,
    }  # fmt: skip
    assert early.pair == ("input:gray", "input:colored")
    assert dict(early.options) == {"momentum": 0.02, "affine": True}
    assert [site.pair for site in (first, second)] == [
        ("module:visual.layer1", "module:audio.layer1"),
        ("module:visual.layer2", "module:audio.layer2"),
    ]
    assert [site.name for site in made.sites] == ["regbn_late", "regbn_early", "regbn_layers", "regbn_layers_1"]
    assert first.f.shape[1:] == (4, 14, 14)


def test_the_file_is_done_as_planned(model: nn.Module, made: Plan) -> None:
    assert not [note for note in made.notes if "fails" in note]
    assert all(site.tier in (1, 2, 3) for site in made.sites)
    for rules in (FILE, made, Plan.from_json(made.to_json())):
        rewritten = regbn_surgery.regbnify(model, rules, example())
        layers = {path: module for path, module in rewritten.named_modules() if isinstance(module, RegBN)}
        assert sorted(layers) == [
            "fusion.regbn_late.regbn", "regbn_early.regbn", "regbn_layers.regbn", "regbn_layers_1.regbn",
        ]  # fmt: skip
        assert layers["fusion.regbn_late.regbn"].options.momentum == 0.05
        assert layers["regbn_early.regbn"].options.momentum == 0.02


def test_the_inputs_section_stands_in_for_example_inputs(model: nn.Module) -> None:
    rules = Rules.from_file(FILE).to_dict()
    rules["inputs"] |= {"colored": {"shape": [8, 3, 28, 28]}, "x": {"shape": [8, 16]}}
    made = regbn_surgery.plan(model, rules)
    assert [site.name for site in made.sites] == ["regbn_late", "regbn_early", "regbn_layers", "regbn_layers_1"]
    assert isinstance(regbn_surgery.regbnify(model, made), Everything)  # the plan has them, too


def test_file_dict_and_back(tmp_path: Path) -> None:
    rules = Rules.from_file(FILE)
    assert Rules.from_dict(rules.to_dict()) == rules
    (tmp_path / "again.yaml").write_text(rules.to_yaml())
    assert Rules.from_file(tmp_path / "again.yaml") == rules


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"exclude": [{"owner": "re:.*\\.axu\\..*"}]}, "exclude[0] matches no fusion point"),
        ({"overrides": {"fusion.cta": {}}}, "did you mean `fusion.cat`?"),
    ],
)
def test_strict_and_warn(model: nn.Module, change: dict, says: str) -> None:
    rules = {**Rules.from_file(FILE).to_dict(), **change}
    with pytest.raises((NothingMatchedError, PlanError)) as caught:
        regbn_surgery.plan(model, rules, example())
    assert says in str(caught.value)
    rules["strict"] = "warn"
    with pytest.warns(RegBNWarning) as warned:
        made = regbn_surgery.plan(model, rules, example(), rehearse=False)
    assert says in made.warnings[0]
    assert any(says in str(warning.message) for warning in warned)
    assert made.sites
