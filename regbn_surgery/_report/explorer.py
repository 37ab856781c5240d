"""The graph for Google's Model Explorer (https://github.com/google-ai-edge/model-explorer): its JSON graph format."""

from __future__ import annotations

from typing import Any

from .._rules.naming import home_name
from .graph import ModelGraph, Node, TensorFact


def to_explorer(before: ModelGraph, after: ModelGraph | None = None) -> dict[str, Any]:
    """A graph collection: the model as it was and, where there was a surgery, as it is after it.

    Modules are namespaces, shapes and lineages are metadata of outputs, and fusion points and RegBN have colours.
    """
    graphs = [_graph(before, "before" if after is not None else "model")]
    if after is not None:
        graphs.append(_graph(after, "after"))
    return {"label": before.title, "graphs": graphs}


def _graph(graph: ModelGraph, name: str) -> dict[str, Any]:
    incoming: dict[str, list[dict[str, str]]] = {}
    for edge in graph.edges:
        into = incoming.setdefault(edge.target, [])
        into.append(
            {"sourceNodeId": edge.source, "sourceNodeOutputId": str(edge.port), "targetNodeInputId": str(len(into))}
        )
    return {"id": name, "nodes": [_node(node, graph, incoming.get(node.id, [])) for node in graph.nodes]}


def _node(node: Node, graph: ModelGraph, incoming: list[dict[str, str]]) -> dict[str, Any]:
    boxes = [graph.box[box].label.replace("/", "∕") for box in graph.ancestors(node.box) if box]
    attributes = [("kind", node.kind), ("source", node.source), ("fusion point", node.point), *node.details]
    made: dict[str, Any] = {
        "id": node.id,
        "label": f"RegBN {node.label}" if node.kind == "regbn" else node.label,
        "namespace": "/".join(reversed(boxes)),
        "attrs": [{"key": key, "value": value} for key, value in attributes if value],
        "incomingEdges": incoming,
        "outputsMetadata": [{"id": str(i), "attrs": _tensor(fact)} for i, fact in enumerate(node.outputs)],
    }
    colour = {"regbn": "#f7a8c4", "fusion": "#ffe28a"}.get(node.kind) or (graph.colour(node.home) if node.home else "")
    if colour:
        key = "backgroundColor" if node.kind in ("regbn", "fusion") else "borderColor"
        made["style"] = {key: colour}
    return made


def _tensor(fact: TensorFact) -> list[dict[str, str]]:
    pairs = (
        ("tensor_shape", f"{fact.dtype}[{fact.shape.replace('×', ',')}]"),
        ("roles", fact.roles),
        ("stream", home_name(fact.home)),
        ("touched by", ", ".join(fact.touched)),
    )
    return [{"key": key, "value": value} for key, value in pairs if value]
