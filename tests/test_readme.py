"""What the README says works: its snippets and commands run as they stand, and print what it shows."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from regbn_surgery import RegBN, RewriteError, regbnify

from .snippets import ROOT, read_blocks, run_page, run_python, working_folder

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLIP = "Salesforce/blip-itm-base-coco"


@contextlib.contextmanager
def prepare_folder(folder: Path) -> Iterator[None]:
    """Put into `folder` what the README expects of its reader; the pretrained model is a small one meanwhile."""
    shutil.copy(ROOT / "tests" / "my_project.py", folder / "my_project.py")
    (folder / "examples").symlink_to(ROOT / "examples")
    try:
        from transformers import BlipForImageTextRetrieval
    except ModuleNotFoundError:
        yield
        return
    with mock.patch.object(BlipForImageTextRetrieval, "from_pretrained", staticmethod(small_blip)):
        yield


def small_blip(name: str) -> nn.Module:
    from transformers import BlipConfig, BlipForImageTextRetrieval

    assert name == BLIP
    sizes = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 24}
    config = BlipConfig(
        text_config={**sizes, "vocab_size": 120, "encoder_hidden_size": 16, "max_position_embeddings": 32},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        image_text_hidden_size=8,
    )
    torch.manual_seed(0)
    return BlipForImageTextRetrieval(config).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with prepare_folder(tmp_path), working_folder(tmp_path):
        yield tmp_path


def part(title: str) -> str:
    """The README from a heading to the next one."""
    return README[README.index(f"## {title}\n") :].split("\n## ")[0]


def test_own_model(folder: Path) -> None:
    names: dict[str, Any] = {}
    shown = list(run_page(part("Your own model"), names))
    assert len(shown) == 1, "the first snippet shows its output"
    assert [item.printed for item in shown] == [item.block.content for item in shown]
    model = names["model"]  # saved and loaded again
    assert type(model).__name__ == "MyModel"
    assert sum(isinstance(module, RegBN) for module in model.modules()) == 1
    first = next(block for block in read_blocks(README) if block.language == "python")
    statements = [line for line in first.content.splitlines() if line.strip()]
    assert len(statements) <= 9, "eight lines and the import of torch"
    assert "<svg" in (folder / "model.html").read_text(encoding="utf-8")


def test_pretrained_model(folder: Path) -> None:
    pytest.importorskip("transformers", reason="this snippet needs transformers")
    names: dict[str, Any] = {}
    shown = list(run_page(part("A pretrained model"), names))
    assert len(shown) == 1
    assert [item.printed for item in shown] == [item.block.content for item in shown]
    model, batch, original = names["model"], names["batch"], small_blip(BLIP)
    assert type(model).__name__ == type(original).__name__
    with torch.no_grad():  # "outputs do not change before the first training step"
        before, after = original(**batch).itm_score, model(**batch).itm_score
    torch.testing.assert_close(after, before)
    missing, unexpected = model.load_state_dict(original.state_dict(), strict=False)
    assert not unexpected
    assert all("regbn_cross" in name for name in missing)


def test_every_snippet_is_in_a_part_that_runs() -> None:
    run = part("Your own model") + part("A pretrained model")
    for block in read_blocks(README):
        assert block.content in run or not block.content.startswith(("import", "from", "regbn-surgery"))
        if block.language == "sh" and block.content not in run:
            targets = re.findall(r"^make ([\w-]+)", block.content, flags=re.MULTILINE)
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert all(f"\n{target}: " in makefile for target in targets)


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 150


def test_links() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), f"README.md points to {target}, which does not exist"


def test_regbn_by_hand(folder: Path) -> None:
    names: dict[str, Any] = {}
    page = (ROOT / "docs" / "by_hand.md").read_text(encoding="utf-8")
    shown = list(run_page(page, names))
    assert shown
    assert [item.printed for item in shown] == [item.block.content for item in shown]
    assert names["f_n"].shape == (50, 512)
    assert names["g_n"].shape == (50, 64, 7, 7)


def test_the_page_on_models() -> None:
    """Its blocks run one after another, as a reader would run them, and say what the page says they do."""
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    out = "".join(run_python(code, names) for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    assert out.count("concat, late") == 2
    inspect, late, example, longer = (names[name] for name in ("inspect", "Late", "example", "longer"))
    point = inspect(late(), [example, longer]).fusion_points[0]
    assert point.sites[0].reduce == "flatten"  # both branches are means already
    with pytest.raises(RewriteError, match="meta device"):
        regbnify(names["huge"], "late", example)
