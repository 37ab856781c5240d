"""The formats that graphs are written in, and which one a file name asks for."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .completing import complete_file
from .output import write_bytes, write_text

if TYPE_CHECKING:
    from .._report.diff import HostLike
    from .._report.graph import ModelGraph

_Command = TypeVar("_Command", bound=Callable[..., Any])

GRAPHS = ("dot", "svg", "png", "html", "explorer")
#: What the end of a file's name asks for.
SUFFIXES = {"json": "json", "dot": "dot", "gv": "dot", "svg": "svg", "png": "png", "html": "html", "htm": "html"}


def output_options(*texts: str) -> Callable[[_Command], _Command]:
    """Give a command `--format`, of these texts (the first is the default) and all graphs, and `-o`.

    The command gets `form` and `output`; without `--format` the file's name decides.
    """
    forms = (*texts, *GRAPHS)

    def decorate(command: _Command) -> _Command:
        @click.option(
            "--format",
            "form",
            type=click.Choice(forms),
            help=f"What to write; by default what the name of FILE asks for, else {texts[0]}. dot, svg and png are "
            "pictures of the graph, html is a page to walk through it, explorer is for Google's Model Explorer.",
        )
        @click.option(
            "-o",
            "--output",
            metavar="FILE",
            shell_complete=complete_file,
            help="Write to a file instead of stdout. A text format in FILE.svg is a picture of the terminal.",
        )
        @functools.wraps(command)
        def wrapped(*args: Any, form: str | None, output: str | None, **kwargs: Any) -> Any:
            if form is None:
                wanted = SUFFIXES.get((output or "").rpartition(".")[2].lower(), texts[0])
                form = wanted if wanted in forms else texts[0]
            return command(*args, form=form, output=output, **kwargs)

        return wrapped  # type: ignore[return-value]

    return decorate


def write_graph(
    form: str, before: ModelGraph, after: ModelGraph | None, hosts: Sequence[HostLike], output: str | None
) -> None:
    """Write one of `GRAPHS`. A picture is of the model after surgery where there was one; a page shows both."""
    if form == "html":
        from .._report.page import to_page

        write_text(to_page(before, after, hosts), output)
    elif form == "explorer":
        from .._report.explorer import to_explorer

        write_text(json.dumps(to_explorer(before, after), ensure_ascii=False), output)
    elif form == "dot":
        from .._report.dot import to_dot

        write_text(to_dot(after or before), output)
    else:
        from .._report.dot import draw

        write_bytes(draw(after or before, form), output)
