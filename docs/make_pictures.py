"""Makes the pictures of docs/inspection.md: `make pictures`, or `python docs/make_pictures.py [NAME ...]`.

Needs the extras `viz` and `hf`, playwright, and Chromium on the PATH (`apt-get install chromium`). BLIP-2 and CLIP have
their full size and no weights.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
sys.path.insert(0, str(ROOT))  # MulT is one of the models of the tests

from regbn_surgery import Rules  # noqa: E402
from regbn_surgery._cli import work  # noqa: E402
from regbn_surgery._cli.options import ModelRequest  # noqa: E402
from regbn_surgery._report.dot import draw  # noqa: E402
from regbn_surgery._report.page import to_page  # noqa: E402


def example() -> work.Inspected:
    rules = Rules.load(str(ROOT / "examples/pmr/rules/late.yaml"))
    return work.operated(ModelRequest(f"{ROOT}/examples/pmr/model.py:factory"), rules)


def clip() -> work.Inspected:
    return work.inspected(ModelRequest("hf:CLIPModel"), {"image": ["pixel_values"], "text": ["input_ids"]})


def blip2() -> work.Inspected:
    request = ModelRequest("hf:Blip2ForConditionalGeneration")
    return work.inspected(request, {"image": ["pixel_values"], "text": ["input_ids"]})


def mult() -> work.Inspected:
    from regbn_surgery._api import operate
    from regbn_surgery._surgery import explain
    from tests.zoo.handmade.transformers import CASES

    case = next(case for case in CASES if case.name == "directional_transformer")
    plan, analysis, model = operate(case.model(), Rules.from_dict(case.rules_dict()), case.example)
    return work.Operated(analysis, work.with_tiers(plan, explain(model)), model)


#: Of each page: the model, whether the page is dark, and what is done to it before the photograph.
PAGES: dict[str, tuple[Callable[[], work.Inspected], bool, str]] = {
    "example": (example, False, "choose('regbn_late (RegBN)'); fit()"),
    "clip": (clip, True, "choose('/matmul')"),
    "blip2": (blip2, False, "choose('/masked_scatter', true)"),
    "mult": (mult, False, "choose('regbn_join (RegBN)'); fit()"),
}
#: Drawn by Graphviz, too.
GRAPHS = ("example", "blip2")


def main() -> None:
    browser = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if browser is None:
        raise SystemExit("no browser on the PATH: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for name in sys.argv[1:] or PAGES:
            make, dark, script = PAGES[name]
            found = make()
            path = Path(folder) / f"{name}.html"
            path.write_text(_page(found), encoding="utf-8")
            _photograph(chromium, path, dark, script, PICTURES / f"{name}-page.png")
            if name in GRAPHS:
                graph = getattr(found, "after", None) or found.graph
                (PICTURES / f"{name}-graph.png").write_bytes(draw(graph, "png"))
            sys.stderr.write(f"made the pictures of {name}\n")
        chromium.close()


def _page(found: work.Inspected) -> str:
    if isinstance(found, work.Operated):
        return to_page(found.graph, found.after, found.hosts)
    return to_page(found.graph)


def _photograph(chromium: Any, path: Path, dark: bool, script: str, out: Path) -> None:
    page = chromium.new_page(viewport={"width": 1280, "height": 820}, color_scheme="dark" if dark else "light")
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready=yes]")
    page.evaluate(script)
    page.wait_for_timeout(300)
    page.screenshot(path=out)
    page.close()


if __name__ == "__main__":
    main()
