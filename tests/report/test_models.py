"""What people read of six models, as a whole: table, tree, diff and JSON (`UPDATE_GOLDEN=1` writes them anew)."""

from __future__ import annotations

import functools
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from regbn_surgery._api import operate
from regbn_surgery._cli.work import Operated
from regbn_surgery._rehearsal import examined
from regbn_surgery._report.diff import host_views
from regbn_surgery._report.tables import inspection_view
from regbn_surgery._report.text import plain
from regbn_surgery._report.tree import tree_view
from regbn_surgery._rules import Rules

from ..zoo import handmade, hf

GOLDEN = Path(__file__).parent / "golden" / "models"
ROOT = Path(__file__).parents[2]
CASES = {case.name: case for case in (*handmade.CASES, *hf.CASES)}
MODELS = ("concat", "directional_transformer", "film_levels", "fusenet", "hf_clip", "hf_blip2")

WRITTEN_WITH = "5.23."


@functools.cache
def operated(name: str) -> Operated:
    case = CASES[name]
    plan, analysis, model = operate(case.model(), Rules.from_dict(case.rules_dict()), case.example)
    return Operated(analysis, examined(model, plan, analysis, case.example), model if plan.sites else None)


def stable(text: str) -> str:
    """Without what differs from one installation, or one edit of the zoo, to the next: folders and line numbers."""
    text = re.sub(r"[^\s\"`]*?/(?:site|dist)-packages/", "", text.replace(f"{ROOT}{os.sep}", ""))
    text = re.sub(r"(\w+\.py):\d+", r"\1:LINE", text)
    return re.sub(r"^@@ -\d+(,\d+)? \+\d+(,\d+)? @@", r"@@ -LINE\1 +LINE\2 @@", text, flags=re.MULTILINE)


def written(name: str, form: str) -> str:
    done = operated(name)
    if form == "json":
        return json.dumps(done.inspection.to_dict(), indent=1, ensure_ascii=False)
    if form == "diff":
        return "\n".join(plain(view) for view in host_views(done.hosts))
    # Notes are wrapped, and where depends on the length of folders' names.
    view = (
        inspection_view(replace(done.inspection, notes=())) if form == "table" else tree_view(done.after or done.graph)
    )
    return plain(view)


@pytest.mark.parametrize("form", ["table", "tree", "diff", "json"])
@pytest.mark.parametrize("name", MODELS)
def test_as_agreed(name: str, form: str) -> None:
    if name.startswith("hf_"):
        transformers = pytest.importorskip("transformers")
        if not transformers.__version__.startswith(WRITTEN_WITH):
            pytest.skip(f"written with transformers {WRITTEN_WITH}; other releases call other things")
    text = stable(written(name, form)) + "\n"
    path = GOLDEN / f"{name}.{form}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    if form in ("table", "tree"):
        assert max(map(len, text.splitlines())) <= 80
