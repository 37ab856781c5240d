"""Hooks of `mkdocs build`: pages made from the code, notebooks, and links to files outside docs/.

The pages in docs/ are written for readers of the repository, with links such as `../examples/pmr/README.md`. In the
site README.md is the first page, and every other linked file outside docs/ is added under `repository/`.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from regbn_surgery._cli.commands import cli
from regbn_surgery._rules.json_schema import rules_schema

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|<)([^)\s#]+)(?=[)#])|(?<=src=\")(?!\w+:|#)([^\"#]+)(?=\")")
FENCED = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)
#: Where files of the repository are in the site, of those that are not at their path below docs/.
MOVED = {"README.md": "index.md"}


def site_path(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path in MOVED:
        return MOVED[path]
    if path.startswith("docs/"):
        path = path.removeprefix("docs/")
        return f"{path}.md" if path.endswith(".ipynb") else path
    return f"repository/{path}"


def repository_path(path: str) -> str:
    """Which file of the repository a file of the site is."""
    for original, moved in MOVED.items():
        if path == moved:
            return original
    if path.startswith("repository/"):
        return path.removeprefix("repository/")
    return f"docs/{path.removesuffix('.md') if path.endswith('.ipynb.md') else path}"


def links_of(text: str, path: str) -> list[str]:
    """Files of the repository to which a Markdown text at `path` links."""
    found = [match[1] or match[2] for match in LINK.finditer(FENCED.sub("", text))]
    return [posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in found]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code, the notebooks, and the linked files outside docs/."""
    made = {"reference/cli.md": cli_page(), "reference/rules_schema.md": schema_page()}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        path = notebook.relative_to(ROOT).as_posix()
        files.remove(files.src_uris[site_path(path).removesuffix(".md")])
        files.append(File.generated(config, site_path(path), content=notebook_page(notebook.read_text("utf-8"))))
    waiting = ["README.md"] + [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    done: set[str] = set()
    while waiting:
        path = waiting.pop()
        source = ROOT / repository_path(site_path(path))
        if path in done or not source.is_file():
            continue
        done.add(path)
        if site_path(path) not in files.src_uris:
            files.append(File.generated(config, site_path(path), abs_src_path=str(source)))
        if source.suffix == ".md":
            waiting += links_of(source.read_text(encoding="utf-8"), path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links point to where the files are in the site."""
    here = page.file.src_uri

    def relocated(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(here)), match[0]))
        return posixpath.relpath(site_path(path), posixpath.dirname(here) or ".")

    parts, end = [], 0
    for block in FENCED.finditer(markdown):
        parts += [LINK.sub(relocated, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(relocated, markdown[end:])])


def cli_page() -> str:
    """The help of every command, as the command line prints it."""
    top = click.Context(cli, info_name="regbn-surgery", terminal_width=80)
    parts = ["# Command line", "How to use the commands together: [Looking at a model](../inspection.md).", _help(top)]
    for name in cli.list_commands(top):
        command = cli.get_command(top, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=top, terminal_width=80)
        parts += [f"## {name}", _help(context)]
    return "\n\n".join(parts) + "\n"


def _help(context: click.Context) -> str:
    return f"```text\n{context.get_help()}\n```"


def schema_page() -> str:
    """The JSON Schema of rules files."""
    text = json.dumps(rules_schema(), indent=2, ensure_ascii=False)
    words = "What `regbn-surgery schema` prints. The keys are explained in [The rules file](../rules.md)."
    return f"# Schema of rules files\n\n{words}\n\n```json\n{text}\n```\n"


def notebook_page(text: str) -> str:
    """A notebook as Markdown, with the text that its cells print."""
    return "\n\n".join(_cell(cell) for cell in json.loads(text)["cells"]) + "\n"


def _cell(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    outputs = ["".join(output["text"]) for output in cell["outputs"]]
    return "\n\n".join([f"```python\n{source}\n```", *(f"```text\n{output}```" for output in outputs)])
