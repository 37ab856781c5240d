"""The graph as DOT text, which needs nothing, and laid out as SVG or PNG by Graphviz, which `pygraphviz` carries."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from .._errors import RegBNError
from .graph import Box, ModelGraph, Node
from .repeats import first_of_each
from .scene import Scene, essential, scene_of, well_opened
from .words import count_text

#: So many nodes and closed boxes at most, as a rule.
MOST = 60
_FONT = "Helvetica,Arial,sans-serif"


class PictureError(RegBNError):
    """A picture cannot be drawn here."""


def to_dot(graph: ModelGraph, most: int = MOST) -> str:
    """DOT text: nested boxes for modules, the streams coloured by modality, fusion points and RegBN standing out.

    Views and bookkeeping are left out, repeated layers are drawn once, and modules without fusion points are closed
    where there would be more than about `most` nodes.
    """
    lean = essential(first_of_each(graph))
    scene = scene_of(lean, well_opened(lean, most))
    return _dot(scene)


def draw(graph: ModelGraph, form: str, most: int = MOST) -> bytes:
    """The picture of `to_dot` laid out, as "svg" or "png". Raises `PictureError` without pygraphviz."""
    try:
        import pygraphviz
    except ImportError as error:
        raise PictureError(
            f"drawing {form.upper()} needs pygraphviz, whose wheels carry Graphviz: pip install "
            "'regbn_surgery[viz]'. Or write DOT (--format dot), which any Graphviz draws: dot -Tsvg graph.dot"
        ) from error
    options = "-Gdpi=84" if form == "png" else ""
    drawn: Any = pygraphviz.AGraph(string=to_dot(graph, most)).draw(format=form, prog="dot", args=options)
    return bytes(drawn) if isinstance(drawn, bytes | bytearray) else str(drawn).encode()


def _dot(scene: Scene) -> str:
    lines = [
        "digraph model {",
        f'  graph [rankdir=TB, compound=true, fontname="{_FONT}", fontsize=11, nodesep=0.25, ranksep=0.35, '
        f'bgcolor="#ffffff", pad=0.2, label={_quoted(_title(scene.graph))}, labelloc=t];',
        f'  node [shape=box, style="filled,rounded", fontname="{_FONT}", fontsize=10, height=0.3, margin="0.1,0.04", '
        'fillcolor="#ffffff", color="#9aa3b2"];',
        f'  edge [fontname="{_FONT}", fontsize=8, fontcolor="#4b5563", arrowsize=0.6, penwidth=1.4];',
    ]
    within: dict[str, list[str]] = defaultdict(list)
    children: dict[str, list[Box]] = defaultdict(list)
    for box in scene.graph.boxes:
        if box.id and box.id in scene.open:
            children[box.parent].append(box)
    for node in scene.nodes:
        within[node.box].append(_node(node, scene.graph))
    for box in scene.closed:
        within[box.parent].append(_closed(box, scene.graph))
    lines += _inside("", within, children, scene.graph, 1)
    lines += [f"  {_edge(edge, count, scene.graph)}" for edge, count in scene.edges]
    return "\n".join([*lines, "}"]) + "\n"


def _inside(
    box: str, within: dict[str, list[str]], children: dict[str, list[Box]], graph: ModelGraph, depth: int
) -> list[str]:
    pad = "  " * depth
    lines = [pad + line for line in within[box]]
    for child in children[box]:
        colour = "#c0265f" if child.id in graph.changed else "#c3cad5"
        width = 2 if child.id in graph.changed else 1
        lines += [
            f"{pad}subgraph {_quoted('cluster ' + child.id)} {{",
            f'{pad}  graph [label={_box_title(child)}, labeljust=l, style="rounded,filled", '
            f'fillcolor="{_shade(depth)}", color="{colour}", penwidth={width}, fontsize=10, fontcolor="#374151"];',
            *_inside(child.id, within, children, graph, depth + 1),
            f"{pad}}}",
        ]
    return lines


def _shade(depth: int) -> str:
    return "#f6f7f9" if depth % 2 else "#ffffff"


def _box_label(box: Box) -> str:
    return f"{box.label} ({box.class_name}) ×{box.repeats}" if box.repeats else f"{box.label} ({box.class_name})"


def _box_title(box: Box) -> str:
    """In two lines flush left, where fewer edges run through it than through one long one."""
    name = f"{box.label} ×{box.repeats}" if box.repeats else box.label
    return '"' + "".join(_quoted(line)[1:-1] + "\\l" for line in (name, box.class_name)) + '"'


def _title(graph: ModelGraph) -> str:
    title = f"{graph.title}: {count_text(len(graph.points), 'fusion point')}"
    modules = sum(node.kind == "regbn" for node in graph.nodes)
    return f"{title}, {modules} RegBN" if modules else title


def _node(node: Node, graph: ModelGraph) -> str:
    colour = graph.colour(node.home)
    attributes = {"label": node.label, "color": colour}
    if node.outputs:
        first = node.outputs[0]
        attributes["tooltip"] = f"{node.id}: {first.shape} {first.dtype} {first.roles}".strip()
    if node.kind == "input":
        attributes |= {
            "shape": "box",
            "style": "filled",
            "margin": "0.15,0.08",
            "fillcolor": colour,
            "fontcolor": "#ffffff",
        }
        attributes["label"] = f"{node.label}\n{node.outputs[0].shape}"
    elif node.kind == "output":
        attributes |= {"shape": "box", "style": "filled", "fillcolor": "#eef0f3"}
    elif node.kind == "regbn":
        attributes |= {"shape": "box3d", "style": "filled", "fillcolor": "#c0265f", "fontcolor": "#ffffff",
                       "color": "#7d0f3a", "penwidth": "2", "label": f"RegBN\n{node.label}"}  # fmt: skip
    elif node.point:
        attributes |= {"shape": "octagon", "style": "filled", "fillcolor": "#ffe28a", "color": "#a16207",
                       "penwidth": "2.5", "label": f"{node.label}\n{graph.points[node.point]['kind']}"}  # fmt: skip
    elif node.kind == "op":
        attributes |= {"shape": "ellipse", "margin": "0.05,0.02"}
    else:
        attributes["penwidth"] = "1.6"
    return f"{_quoted(node.id)} [{_attributes(attributes)}];"


def _closed(box: Box, graph: ModelGraph) -> str:
    homes = [node.home for node in graph.nodes if box.id in set(graph.ancestors(node.box)) and node.home]
    colour = graph.colour(homes[-1]) if homes else graph.colour(())
    attributes = {
        "label": f"{_box_label(box)}\n{graph.sizes[box.id]} calls",
        "color": "#a16207" if box.id in graph.marked else colour,
        "style": "filled,rounded,dashed" if not box.repeats else "filled,rounded",
        "peripheries": "2" if box.repeats else "1",
        "fillcolor": "#fff5d6" if box.id in graph.marked else "#eef0f3",
        "penwidth": "1.6",
    }
    return f"{_quoted(box.id)} [{_attributes(attributes)}];"


def _edge(edge: Any, count: int, graph: ModelGraph) -> str:
    label = edge.tensor.shape if count == 1 else f"{count} tensors"
    attributes = {"color": graph.colour(edge.tensor.home), "label": f" {label} " if label else ""}  # clear of the line
    return f"{_quoted(edge.source)} -> {_quoted(edge.target)} [{_attributes(attributes)}];"


def _attributes(attributes: dict[str, str]) -> str:
    return ", ".join(f"{key}={_quoted(value)}" for key, value in attributes.items())


def _quoted(text: str) -> str:
    """A DOT string of this very text: quotes and backslashes of a name mean nothing in it; control characters go."""
    clean = re.sub(r"[\x00-\x09\x0b-\x1f\x7f]", "\ufffd", text)
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
