"""Run the snippets of a Markdown page as a reader would, and compare the outputs that the page shows.

A page is read from top to bottom, in an empty folder:

- a block with a title (```python title="model.py") is written to that file;
- other `python` blocks run one after another in one namespace;
- the lines of `sh` blocks that begin with `regbn-surgery`, `python`, `torchrun` or `cat` run as commands;
- a `text` block that directly follows one of these shows what it prints.

    python -m tests.snippets README.md docs/by_hand.md docs/tutorials/*.md docs/notebooks/*.ipynb

writes the shown outputs anew, those of notebooks as well.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import linecache
import os
import re
import shlex
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from regbn_surgery._cli.commands import cli

ROOT = Path(__file__).parents[1]
NUMBERS = itertools.count(1)
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: language, title, content, where its content lies in the page, and whether it shows an output."""

    language: str
    title: str | None
    content: str
    span: tuple[int, int]
    is_output: bool


@dataclass(frozen=True)
class Shown:
    """An output that a page shows, and what was printed."""

    block: Block
    printed: str


def read_blocks(page: str) -> list[Block]:
    blocks: list[Block] = []
    end_before = -1
    for match in FENCE.finditer(page):
        language, title, content = match.groups()
        follows = bool(blocks) and not page[end_before : match.start()].strip()
        is_output = language == "text" and follows and blocks[-1].language in ("python", "sh") and not blocks[-1].title
        blocks.append(Block(language, title, content, match.span(3), is_output))
        end_before = match.end()
    return blocks


def run_page(page: str, names: dict[str, Any] | None = None) -> Iterator[Shown]:
    """Run the blocks of a page in the current folder; give each shown output with what was printed.

    `names` is the namespace of the Python blocks. Raises what a block raises; a command that fails raises
    AssertionError with its output.
    """
    names = {"__name__": "__main__"} if names is None else names
    printed = ""
    for block in read_blocks(page):
        if block.title is not None:
            Path(block.title).write_text(block.content, encoding="utf-8")
        elif block.language == "python":
            printed = run_python(block.content, names)
        elif block.language == "sh":
            printed = "".join(run_command(line) for line in commands_of(block.content))
        elif block.is_output:
            yield Shown(block, tidy(printed))


def run_python(code: str, names: dict[str, Any], file: str | None = None) -> str:
    """Run a block and return what it printed. Python knows its source, as in a notebook."""
    file = f"<snippet {next(NUMBERS)}>" if file is None else file
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, file, "exec"), names)
    return out.getvalue()


def run_notebook(notebook: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Run the code cells in the current folder; give each with what it printed.

    `!` lines run as commands. A last line that only displays a value is run, not displayed.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        lines = "".join(cell["source"]).splitlines()
        code = "\n".join(f"_run_command({line[1:]!r})" if line.startswith("!") else line for line in lines)
        names["_run_command"] = lambda line: sys.stdout.write(run_command(line))
        with stand_in_for_ipython():
            yield cell, tidy(run_python(f"{code}\n", names, f"<cell {number}>"))


@contextlib.contextmanager
def stand_in_for_ipython() -> Iterator[None]:
    """`IPython.display` for notebooks that run without Jupyter; the real one where it is installed."""
    if importlib.util.find_spec("IPython") is not None:
        yield
        return
    module = types.ModuleType("IPython.display")
    module.IFrame = ShownFile  # type: ignore[attr-defined]
    stand_ins = {"IPython": types.ModuleType("IPython"), "IPython.display": module}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:  # what else was imported meanwhile stays: some packages cannot be imported twice
        for name in stand_ins:
            sys.modules.pop(name)


class ShownFile:
    """What `IPython.display.IFrame` is to these notebooks: a file that must be there."""

    def __init__(self, src: str, width: object, height: object) -> None:
        assert Path(src).stat().st_size > 0, f"{src} is shown in the notebook, and empty"


def commands_of(block: str) -> list[str]:
    """Lines of a shell block that can be run here: not those that install or that build the repository."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.split(" ")[0] in ("regbn-surgery", "python", "torchrun", "cat")]


def run_command(line: str) -> str:
    """Run one command line and return what it printed, messages included."""
    program, *arguments = shlex.split(line, comments=True)
    if program == "regbn-surgery":
        result = CliRunner().invoke(cli, arguments, prog_name="regbn-surgery")
        assert result.exit_code == 0, f"{line}: exit code {result.exit_code}\n{result.output}"
        return result.output
    if program == "cat":
        return "".join(Path(name).read_text(encoding="utf-8") for name in arguments)
    start = [sys.executable] if program == "python" else [sys.executable, "-m", "torch.distributed.run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path.cwd())]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{line}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tidy(text: str) -> str:
    """Without trailing blanks, which editors remove from a page."""
    return "".join(f"{line.rstrip()}\n" for line in text.strip("\n").splitlines())


@contextlib.contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """Run in `folder` with its files importable; other modules of the same names (`model`) are put aside meanwhile."""
    before, path = Path.cwd(), list(sys.path)
    aside = take_modules_below(ROOT / "examples")
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        take_modules_below(folder)
        take_modules_below(ROOT / "examples")
        sys.modules.update(aside)


def take_modules_below(folder: Path) -> dict[str, Any]:
    """Remove the modules whose files are in `folder` from `sys.modules`, and return them."""
    files = {name: getattr(module, "__file__", None) or "" for name, module in list(sys.modules.items())}
    return {name: sys.modules.pop(name) for name, file in files.items() if file.startswith(f"{folder}{os.sep}")}


def comparable(text: str) -> str:
    """An output without line numbers of other packages, and without measured numbers and their bars."""
    text = re.sub(r"(modeling_\w+\.py):\d+", r"\1:N", text)
    return re.sub(r"-?\b\d\.\d{3}\b *[▏▎▍▌▋▊▉█]*", "M", text)


def written_anew(page: str, shown: list[Shown]) -> str:
    """The page with its shown outputs replaced by what was printed."""
    for item in reversed(shown):
        start, end = item.block.span
        page = page[:start] + item.printed + page[end:]
    return page


def main(paths: list[str]) -> None:
    from tests.test_readme import prepare_folder  # the model of the README, and a small stand-in for its pretrained one

    for path in map(Path, paths):
        page = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            with prepare_folder(folder), working_folder(folder):
                page = executed(page) if path.suffix == ".ipynb" else written_anew(page, list(run_page(page)))
        path.write_text(page, encoding="utf-8")


def executed(page: str) -> str:
    """The notebook with what its cells print now."""
    notebook = json.loads(page)
    for cell, printed in run_notebook(notebook):
        text = printed.splitlines(keepends=True)
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": text}] if text else []
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
