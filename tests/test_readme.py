"""What the README says works: its Python blocks are run as they stand, its rules file is read."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from regbn_surgery import RegBN, RewriteError, Rules, regbnify

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def block(language: str, containing: str) -> str:
    found = [text for text in blocks(language) if containing in text]
    assert len(found) == 1, f"one {language} block with {containing!r} expected in README.md, found {len(found)}"
    return found[0]


class MyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.table_encoder = nn.Linear(40, 6)
        self.head = nn.Linear(12, 2)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.image_encoder(image), self.table_encoder(table)], dim=1))


def test_own_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    project = types.ModuleType("my_project")
    project.MyModel = MyModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_project", project)
    names: dict[str, object] = {}
    exec(block("python", "from my_project import MyModel"), names)
    assert "concat" in capsys.readouterr().out
    assert isinstance(names["model"], MyModel)
    assert sum(isinstance(module, RegBN) for module in names["model"].modules()) == 1


def test_pretrained_model(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="the README's second example needs transformers")
    cls = transformers.BlipForImageTextRetrieval

    def tiny(name: str) -> nn.Module:
        assert name == "Salesforce/blip-itm-base-coco"
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        text = {**sizes, "vocab_size": 120, "encoder_hidden_size": 16, "max_position_embeddings": 32}
        config = transformers.BlipConfig(
            text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8}, image_text_hidden_size=8
        )
        torch.manual_seed(0)
        return cls(config).eval()

    monkeypatch.setattr(cls, "from_pretrained", staticmethod(tiny))
    names: dict[str, object] = {}
    exec(block("python", "from_pretrained"), names)
    model, batch = names["model"], names["batch"]
    assert isinstance(model, cls)
    assert [name for name in model.state_dict() if "regbn_cross" in name]
    original = tiny("Salesforce/blip-itm-base-coco")
    with torch.no_grad():  # "outputs are unchanged until the first training step"
        before, after = original(**batch).itm_score, model(**batch).itm_score
    torch.testing.assert_close(after, before)
    missing, unexpected = model.load_state_dict(original.state_dict(), strict=False)
    assert not unexpected
    assert all("regbn_cross" in name for name in missing)


def test_regbn_by_hand() -> None:
    names: dict[str, object] = {}
    exec(block("python", "RegBN(gpu=0"), names)
    assert names["f_n"].shape == (50, 512)
    assert names["g_n"].shape == (50, 64, 7, 7)


def test_rules_file() -> None:
    rules = Rules.from_text(block("yaml", "id: late"))
    assert [rule.id for rule in rules.rules] == ["late", "early", "no-gates"]


def test_links() -> None:
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (root / target).exists(), f"README.md points to {target}, which does not exist"


def test_the_page_on_models(capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks run one after another, as a reader would run them, and say what the page says they do."""
    text = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(code, names)
    out = capsys.readouterr().out
    assert out.count("concat, late") == 2
    inspect, late, example, longer = (names[name] for name in ("inspect", "Late", "example", "longer"))
    point = inspect(late(), [example, longer]).fusion_points[0]  # type: ignore[operator]
    assert point.sites[0].reduce == "flatten"  # both branches are means already
    with pytest.raises(RewriteError, match="meta device"):
        regbnify(names["huge"], "late", example)  # type: ignore[arg-type]
