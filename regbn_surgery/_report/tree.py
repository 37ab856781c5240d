"""The modules of a model as a tree in text, with the streams that go into and come out of each, and where they meet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .graph import Edge, ModelGraph, Node
from .repeats import first_of_each
from .scene import essential
from .shapes import home_text
from .words import count_text

#: Of a terminal's colours, those that can be told apart on light and on dark.
_COLOURS = ("blue", "dark_orange3", "green", "yellow4", "purple", "cyan")
_MIXED = "magenta"


@dataclass(frozen=True)
class _Line:
    """A line of the tree: `head` after the guides, what flows, and whether it stands out."""

    guides: str
    head: Text
    flow: Text


def tree_view(graph: ModelGraph, width: int = 80) -> RenderableType:
    """The tree: modules and layers in the order of the run; ◆ marks fusion points, ■ RegBN. Repeats are shown once."""
    lean = first_of_each(essential(graph))
    lines = [_inputs(lean), *_Tree(lean).lines("", "")]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(30, width * 3 // 5))
    table.add_column(overflow="fold")
    for line in lines:
        table.add_row(Text.assemble((line.guides, "dim"), line.head), line.flow)
    points = count_text(len(graph.points), "fusion point")
    return Group(Text.assemble((graph.title, "bold"), f": {points}"), Text(""), table)


def _inputs(graph: ModelGraph) -> _Line:
    flow = Text()
    for node in graph.nodes:
        if node.kind == "input" and node.home:
            flow.append_text(_stream(graph, node.home)).append(f" {node.outputs[0].shape}  ")
    flow.rstrip()
    return _Line("", Text(graph.title), flow)


def _style(graph: ModelGraph, home: Sequence[str]) -> str:
    if not home:
        return "dim"
    return _MIXED if len(home) > 1 else _COLOURS[graph.modalities.index(home[0]) % len(_COLOURS)]


def _stream(graph: ModelGraph, home: Sequence[str]) -> Text:
    return Text(home_text(home), style=_style(graph, home))


class _Tree:
    def __init__(self, graph: ModelGraph) -> None:
        self.graph = graph
        self.into: dict[str, list[Edge]] = defaultdict(list)
        self.within: dict[str, list[str]] = defaultdict(list)  # ids of boxes and nodes in each box, in order
        self.entering: dict[str, list[Edge]] = defaultdict(list)
        self.leaving: dict[str, list[Edge]] = defaultdict(list)
        for edge in graph.edges:
            self.into[edge.target].append(edge)
            source = set(graph.ancestors(graph.node[edge.source].box))
            target = set(graph.ancestors(graph.node[edge.target].box))
            for box in target - source:
                self.entering[box].append(edge)
            for box in source - target:
                self.leaving[box].append(edge)
        seen: set[str] = set()
        for node in graph.nodes:
            chain = [node.id, *graph.ancestors(node.box)]
            for item, box in zip(reversed(chain[:-1]), reversed(chain[1:]), strict=True):
                if item not in seen:
                    seen.add(item)
                    self.within[box].append(item)

    def lines(self, box: str, guides: str) -> Iterator[_Line]:
        items = [item for item in self.within[box] if self._shown(item)]
        for i, item in enumerate(items):
            last = i == len(items) - 1
            corner, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
            node = self.graph.node.get(item)
            if node is not None:
                yield _Line(guides + corner, self._head(node), self._node_flow(node))
                continue
            yield _Line(guides + corner, self._box_head(item), self._box_flow(item))
            yield from self.lines(item, guides + below)

    def _shown(self, item: str) -> bool:
        node = self.graph.node.get(item)
        return node is None or node.kind in ("module", "regbn") or bool(node.point)

    def _head(self, node: Node) -> Text:
        if node.kind == "regbn":
            return Text(f"■ {node.label} (RegBN)", style="bold red")
        if node.point:
            point = self.graph.points[node.point]
            return Text(f"◆ {node.label} ({point['kind']}, {point['level']})", style="bold yellow")
        name, _, class_name = node.label.partition(": ")
        return Text.assemble(name, (f" ({class_name})", "dim") if class_name else "")

    def _node_flow(self, node: Node) -> Text:
        if node.point or node.kind == "regbn":
            homes = dict.fromkeys(edge.tensor.home for edge in self.into[node.id] if edge.tensor.home)
            text = Text(" × ").join(_stream(self.graph, home) for home in homes)
            return text.append(" → ").append_text(self._outputs(node)) if homes else self._outputs(node)
        return self._outputs(node)

    def _outputs(self, node: Node) -> Text:
        text = Text()
        for fact in node.outputs if node.kind == "regbn" else node.outputs[:1]:
            text.append(", " if text else "").append_text(_stream(self.graph, fact.home)).append(f" {fact.shape}")
        return text

    def _box_head(self, item: str) -> Text:
        box = self.graph.box[item]
        times = f" ×{box.repeats}" if box.repeats else ""
        style = "bold red" if item in self.graph.changed else "bold" if item in self.graph.marked else ""
        return Text.assemble((box.label + times, style), (f" ({box.class_name})", "dim"))

    def _box_flow(self, item: str) -> Text:
        def homes(edges: list[Edge]) -> Text:
            found = dict.fromkeys(edge.tensor.home for edge in edges if edge.tensor.home)
            return Text(", ").join(_stream(self.graph, home) for home in found)

        into, out = homes(self.entering[item]), homes(self.leaving[item])
        if not into and not out:
            return Text()
        return into if into.plain == out.plain else Text.assemble(into or "…", " → ", out or "nothing that is read on")
