"""Each preset on models of its kind, compared as a whole: what a plan says is what people go by.

`UPDATE_GOLDEN=1 pytest tests/plan/test_presets.py` writes the plans anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import regbn_surgery
from regbn_surgery import Rules
from regbn_surgery._rules import preset_names
from regbn_surgery._tree import tensors
from regbn_surgery._types import Plan
from regbn_surgery.nn import RegBN

from ..zoo import CASES

GOLDEN = Path(__file__).parent / "golden"
PAGE = (Path(__file__).parents[2] / "docs" / "presets.md").read_text(encoding="utf-8")
MODELS = {case.name: case for case in CASES}
PAIRS = [
    ("early", "early_concat"),
    ("late", "graph_and_image"),
    pytest.param("late", "three_modalities", marks=pytest.mark.slow),
    ("layer-wise", "fusenet"),
    pytest.param("layer-wise", "slowfast", marks=pytest.mark.slow),
    ("cross-attention", "cross_attention_batch_first"),
    ("cross-attention", "hf_whisper"),
    ("cross-attention-pretrained", "hf_blip_matching"),
    ("cross-attention-pretrained", "hf_whisper"),
    ("token-concat", "hf_visual_bert"),
    ("scatter", "hf_llava"),
    ("similarity", "hf_clip"),
]


def test_every_preset_is_tried() -> None:
    tried = {pair.values[0] if hasattr(pair, "values") else pair[0] for pair in PAIRS}
    assert set(preset_names()) == tried


@pytest.mark.parametrize(("preset", "name"), PAIRS, ids=lambda value: value)
def test_the_plan_is_as_agreed(preset: str, name: str) -> None:
    if name.startswith("hf_"):
        pytest.importorskip("transformers", reason="the model is one of transformers")
    case = MODELS[name]
    plan = regbn_surgery.plan(case.model(), preset, case.example)
    assert plan.sites
    assert not [note for note in plan.notes if "fails" in note]
    assert Plan.from_json(plan.to_json()) == plan
    content = plan.to_dict()
    content.pop("forwards", None)  # digests of other people's code, which changes from release to release
    if name.startswith("hf_"):  # whether a layer is given a mask changes from release to release, too
        for site in content["sites"]:
            site.pop("padding")
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path = GOLDEN / f"{preset}-{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("preset", "name", "kept"),
    [
        ("scatter", "hf_llava", True),
        ("similarity", "hf_clip", True),
        ("cross-attention-pretrained", "hf_blip_matching", True),
        ("cross-attention-pretrained", "hf_whisper", True),
        ("cross-attention", "hf_blip_matching", False),
    ],
)
def test_which_presets_leave_pretrained_outputs_as_they_are(preset: str, name: str, kept: bool) -> None:
    """In another batch than the example's, before the first training step."""
    pytest.importorskip("transformers", reason="the model is one of transformers")
    case = MODELS[name]
    torch.manual_seed(0)
    model = case.model().eval()
    rewritten = regbn_surgery.regbnify(model, preset, case.example)
    other = case.inputs(5)
    with torch.no_grad():
        before, after = (list(tensors((m(**other),))) for m in (model, rewritten))
    pairs = list(zip(before, after, strict=True))
    assert pairs
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs if a.is_floating_point()) == kept
    rows = [row.split("|") for row in PAGE.splitlines() if f"| `{preset}` |" in row]
    assert [row[5].startswith(" outputs stay") for row in rows] == [kept], "docs/presets.md says so, too"


@pytest.mark.parametrize(("preset", "name"), PAIRS[:2], ids=lambda value: value)
def test_a_stored_plan_is_applied_as_it_is(preset: str, name: str) -> None:
    case = MODELS[name]
    stored = Plan.from_dict(json.loads((GOLDEN / f"{preset}-{name}.json").read_text(encoding="utf-8")))
    model = regbn_surgery.regbnify(case.model(), stored, case.example)
    expected = sorted(f"{site.host}.{site.name}.regbn".lstrip(".") for site in stored.sites)
    assert sorted(path for path, module in model.named_modules() if isinstance(module, RegBN)) == expected


@pytest.mark.parametrize("preset", preset_names())
def test_presets_say_the_same_as_dict_and_file(preset: str) -> None:
    rules = Rules.load(preset)
    assert Rules.from_dict(rules.to_dict()) == rules
