"""Rooms import one way, and records import nothing: what keeps the structure of the package legible."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

import regbn_surgery

PACKAGE = Path(regbn_surgery.__file__).parent
#: Files that only hold plain data.
RECORDS = ("_types.py", "_surgery/_record.py")


def imports(file: Path) -> Iterator[str]:
    """The first part of each module of the package that a file imports when it is loaded."""
    parts = file.relative_to(PACKAGE).parts[:-1]
    todo: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.ImportFrom) and node.level:
            around = parts[: len(parts) - (node.level - 1)]
            named = (node.module or "").split(".") if node.module else [alias.name for alias in node.names][:1]
            yield (*around, *named)[0]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(node)


def rooms() -> nx.DiGraph:
    """Which room (a folder or a file of the package) imports which."""
    graph: nx.DiGraph = nx.DiGraph()
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).with_suffix("").parts[0]
        if room not in ("__init__", "__main__"):
            graph.add_edges_from((room, other) for other in imports(file) if other != room)
    return graph


def test_rooms_import_one_way() -> None:
    found = rooms()
    assert len(found) > 20
    circles = [sorted(circle) for circle in nx.strongly_connected_components(found) if len(circle) > 1]
    assert circles == []


def test_a_circle_would_be_seen() -> None:
    found = rooms()
    found.add_edge("_trace", "_surgery")
    assert any(len(circle) > 1 for circle in nx.strongly_connected_components(found))


def test_records_import_nothing() -> None:
    for name in RECORDS:
        assert list(imports(PACKAGE / name)) == [], name


def test_nobody_below_surgery_imports_it() -> None:
    """Tracing, analysing and planning change nothing, and so need nothing that does."""
    below = ("_trace", "_ops", "_analysis", "_rules", "_plan", "_report", "nn")
    found = rooms()
    assert [room for room in below if found.has_node(room) and nx.has_path(found, room, "_surgery")] == []
