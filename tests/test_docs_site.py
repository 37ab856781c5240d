"""The documentation builds as a site without a warning and without the network, and has every name and kind."""

from __future__ import annotations

import re
import socket
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

import regbn_surgery
from regbn_surgery._ops._joins import ROWS
from regbn_surgery._types import KINDS, LEVELS

from .snippets import ROOT

DOCS = ROOT / "docs"


def test_the_reference_has_every_public_name() -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: regbn_surgery\.(\w+)$", text, flags=re.MULTILINE)
    assert sorted(named) == sorted(set(regbn_surgery.__all__) - {"__version__"})


def test_the_page_on_kinds_names_calls_of_that_kind() -> None:
    rows = [row.split("|") for row in (DOCS / "kinds.md").read_text(encoding="utf-8").splitlines() if row[:3] == "| `"]
    assert [row[1].strip(" `") for row in rows] == [*KINDS, *LEVELS]
    families = {name: row.family for row in ROWS for name in (row.name, *row.spellings)}
    for row in rows[: len(KINDS)]:
        kind = row[1].strip(" `")
        named = [name for name in re.findall(r"`(\w+)`", row[2]) if name in families]
        assert named or kind == "module"
        assert {families[name] for name in named} <= {kind}


def test_every_page_is_in_the_navigation() -> None:
    """Without mkdocs, too: a page that no menu shows is not found by its readers."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = set(strings(yaml.safe_load(text)["nav"]))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    there |= {f"{path.relative_to(DOCS).as_posix()}.md" for path in DOCS.rglob("*.ipynb")}
    made = {"index.md", "reference/cli.md", "reference/rules_schema.md"}
    assert {page for page in pages if not page.startswith("repository/")} == there | made


def strings(tree: Any) -> list[str]:
    if isinstance(tree, str):
        return [tree]
    return [text for part in (tree.values() if isinstance(tree, dict) else tree) for text in strings(part)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Any warning, a dead link or anchor among them, and any connection is an error."""
    pytest.importorskip("mkdocs", reason="`pip install '.[docs]'` installs what builds the site")
    pytest.importorskip("mkdocstrings_handlers.python", reason="`pip install '.[docs]'` installs mkdocstrings")
    pytest.importorskip("material", reason="`pip install '.[docs]'` installs mkdocs-material")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
        config.plugins.on_shutdown()
    return folder


def refuse(*arguments: object) -> None:
    raise OSError("building the site must not use the network")


class Loaded(HTMLParser):
    """What a page loads by itself from another host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        name = "href" if tag == "link" else "src"
        target = given.get(name) or ""
        if tag in ("link", "script", "img", "iframe") and re.match(r"(\w+:)?//", target):
            self.found.append(target)


def test_the_site_builds(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert not loaded.found, f"{page.name} loads {loaded.found}"


def test_links_that_leave_docs_lead_to_files_of_the_site(site: Path) -> None:
    page = (site / "tutorials" / "many_gpus.html").read_text(encoding="utf-8")
    assert 'href="../repository/examples/distributed/train.py"' in page
    assert (site / "repository" / "examples" / "distributed" / "train.py").is_file()
    assert "repository/examples/pmr/index.html" in (site / "index.html").read_text(encoding="utf-8")


def test_pages_made_from_code(site: Path) -> None:
    commands = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    assert "regbn-surgery inspect [OPTIONS]" in commands
    assert "$schema" in (site / "reference" / "rules_schema.html").read_text(encoding="utf-8")
    assert "shared directions" in (site / "notebooks" / "first_model.ipynb.html").read_text(encoding="utf-8")
