"""What of a graph is shown: which boxes are open, what is left out, and the edges between what remains."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .graph import Box, Edge, ModelGraph, Node


@dataclass(frozen=True)
class Scene:
    """A graph with some boxes closed. Edges run between the ids of nodes and closed boxes."""

    graph: ModelGraph
    open: frozenset[str]
    nodes: tuple[Node, ...]  # in open boxes
    closed: tuple[Box, ...]  # in open boxes
    edges: tuple[tuple[Edge, int], ...]  # with how many tensors each stands for


def scene_of(graph: ModelGraph, opened: Iterable[str]) -> Scene:
    """Close every box that is not in `opened` (or lies in one that is not)."""
    shown: dict[str, str] = {}  # of each box: itself where open, else the outermost closed one around it
    for box in graph.boxes:
        above = shown.get(box.parent, "") if box.id else ""
        if box.id and above != box.parent:
            shown[box.id] = above
        else:
            shown[box.id] = box.id
    wanted = {"", *opened}
    is_open = {box.id for box in graph.boxes if all(b in wanted for b in graph.ancestors(box.id))}

    def seen(node: Node) -> str:
        """The node, or the outermost closed box around it."""
        closed = [b for b in graph.ancestors(node.box) if b not in is_open]
        return closed[-1] if closed else node.id

    place = {node.id: seen(node) for node in graph.nodes}
    merged: dict[tuple[object, ...], tuple[Edge, int]] = {}
    for edge in graph.edges:
        key: tuple[object, ...] = (place[edge.source], place[edge.target])
        if key[0] == key[1]:
            continue
        if key == (edge.source, edge.target):
            key = (*key, edge.port, edge.tensor)  # between two calls, each tensor has an edge of its own
        first, count = merged.get(key, (replace(edge, source=place[edge.source], target=place[edge.target]), 0))
        merged[key] = first, count + 1
    nodes = tuple(node for node in graph.nodes if place[node.id] == node.id)
    closed = tuple(b for b in graph.boxes if b.id and b.id not in is_open and b.parent in is_open)
    return Scene(graph, frozenset(is_open), nodes, closed, tuple(merged.values()))


def well_opened(graph: ModelGraph, most: int = 60) -> frozenset[str]:
    """The boxes to open so that at most about `most` things show: all of them where the whole is no more than that;
    else first those that hold fusion points or RegBN, then, more sparingly, the ones nearest to the root, small
    ones before large."""
    if len(graph.nodes) <= most:
        return frozenset(box.id for box in graph.boxes)
    children: dict[str, list[Box]] = defaultdict(list)
    content: dict[str, int] = defaultdict(int)
    for box in graph.boxes:
        if box.id:
            children[box.parent].append(box)
            content[box.parent] += 1
    for node in graph.nodes:
        content[node.box] += 1
    depth = {box.id: sum(1 for _ in graph.ancestors(box.id)) for box in graph.boxes}
    opened: set[str] = set()
    shown = content[""]
    queue = [(box.id not in graph.marked, depth[box.id], content[box.id], box.id) for box in children[""]]
    heapq.heapify(queue)
    while queue:
        unmarked, _, size, identity = heapq.heappop(queue)
        if unmarked and size > 1 and graph.box[identity].repeats:
            continue  # one name for all of them says more
        if shown + size - 1 > (most // 2 if unmarked else 3 * most):
            continue
        opened.add(identity)
        shown += size - 1
        for box in children[identity]:
            heapq.heappush(queue, (box.id not in graph.marked, depth[box.id], content[box.id], box.id))
    return frozenset(opened)


def essential(graph: ModelGraph) -> ModelGraph:
    """Without calls that only look at a tensor in another way, those that carry no modality, and inputs that nothing
    of this reads. What went through them goes straight on.
    """
    carrying = {node.id for node in graph.nodes if any(fact.home for fact in node.outputs)}
    keep = {
        node.id
        for node in graph.nodes
        if node.point
        or node.kind in ("input", "output", "regbn", "fusion")
        or (node.kind != "view" and node.id in carrying)
    }
    into: dict[str, list[Edge]] = defaultdict(list)
    for edge in graph.edges:
        into[edge.target].append(edge)
    behind: dict[str, tuple[str, ...]] = {}

    def sources(identity: str) -> tuple[str, ...]:
        """The kept nodes that a node's output comes from. Nodes are in the order of the run, so this ends."""
        if identity not in behind:
            behind[identity] = (
                (identity,)
                if identity in keep
                else tuple(dict.fromkeys(s for edge in into[identity] for s in behind.get(edge.source, ())))
            )
        return behind[identity]

    edges: dict[tuple[object, ...], Edge] = {}
    for node in graph.nodes:
        sources(node.id)
        if node.id not in keep:
            continue
        for edge in into[node.id]:
            if edge.source not in carrying:
                continue
            for source in behind.get(edge.source, ()):
                edges.setdefault((source, node.id, edge.port, edge.tensor), replace(edge, source=source))
    read = {edge.source for edge in edges.values()}
    nodes = tuple(node for node in graph.nodes if node.id in keep and (node.kind != "input" or node.id in read))
    used = {box for node in nodes for box in graph.ancestors(node.box)} | {""}
    boxes = tuple(box for box in graph.boxes if box.id in used)
    return replace(graph, nodes=nodes, edges=tuple(edges.values()), boxes=boxes)
