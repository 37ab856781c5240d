"""The formats that graphs are written in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .destination import output_options
from .output import write_bytes, write_text

if TYPE_CHECKING:
    from .._report.diff import HostLike
    from .._report.graph import ModelGraph

_Command = TypeVar("_Command", bound=Callable[..., Any])

GRAPHS = ("dot", "svg", "png", "html", "explorer")


def graph_options(*texts: str) -> Callable[[_Command], _Command]:
    """Give a command `--format`, of these texts (the first is the default) and all graphs, and `-o`."""
    return output_options(
        *texts,
        *GRAPHS,
        drawn_by=("pygraphviz", "Or write DOT (--format dot), which any Graphviz draws: dot -Tsvg graph.dot"),
        form_help=" dot, svg and png are pictures of the graph, html is a page to walk through it, explorer is for "
        "Google's Model Explorer.",
    )


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
