"""Finds modules that repeat over layers, puts a box around them, and draws one for all where asked."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from .graph import Box, Edge, ModelGraph, Node

#: So many alike in a row are one repeat.
_FROM = 3


def with_repeats(graph: ModelGraph) -> ModelGraph:
    """Put a box around each row of boxes that hold the same calls, as the layers of an encoder do."""
    inside: dict[str, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        for above in graph.ancestors(node.box):
            inside[above].append(node)
    children: dict[str, list[Box]] = defaultdict(list)
    for box in graph.boxes:
        if box.id:
            children[box.parent].append(box)
    boxes = dict(graph.box)
    for parent, members in children.items():
        for row in _rows([(box, _signature(box, inside[box.id])) for box in members]):
            identity = f"{row[0].id} … {row[-1].id}"
            label = f"{row[0].label} … {row[-1].label}"
            boxes[identity] = Box(identity, label, row[0].class_name, parent, row[0].path, len(row))
            for box in row:
                boxes[box.id] = replace(box, parent=identity)
    return replace(graph, boxes=tuple(_parents_first(boxes)))


def _signature(box: Box, nodes: list[Node]) -> tuple[object, ...]:
    calls = tuple(
        (relative(node.id, box.id), relative(node.box, box.id), node.kind, bool(node.point), node.home)
        for node in nodes
    )
    return (box.class_name, re.sub(r"\d+", "*", box.label), calls)


def relative(identity: str, prefix: str) -> str:
    """What of a node's or box's id lies below a box."""
    return identity.removeprefix(prefix)


def _rows(boxes: list[tuple[Box, tuple[object, ...]]]) -> Iterator[list[Box]]:
    row: list[Box] = []
    last: tuple[object, ...] | None = None
    for box, signature in boxes:
        if signature != last:
            if len(row) >= _FROM:
                yield row
            row = []
        row.append(box)
        last = signature
    if len(row) >= _FROM:
        yield row


def _parents_first(boxes: dict[str, Box]) -> Iterator[Box]:
    done: set[str] = set()

    def chain(box: Box) -> list[Box]:
        above = [box]
        while above[-1].id and above[-1].parent not in done:
            above.append(boxes[above[-1].parent])
        return above[::-1]

    for box in boxes.values():
        for each in chain(box):
            if each.id not in done:
                done.add(each.id)
                yield each


def first_of_each(graph: ModelGraph) -> ModelGraph:
    """The graph with one member, the first, in each box of repeats.

    What goes from one member to the next is left out; what goes into or out of any member is drawn at the first.
    """
    members: dict[str, list[Box]] = defaultdict(list)
    for box in graph.boxes:
        if box.id and graph.box[box.parent].repeats:
            members[box.parent].append(box)
    stands_for = {box.id: row[0].id for row in members.values() for box in row}

    def places(box: str) -> dict[str, str]:
        """The members that a box lies in, innermost first, by their box of repeats."""
        return {graph.box[b].parent: b for b in graph.ancestors(box) if b in stands_for}

    def moved(identity: str) -> str:
        """The same call in the first member; outermost first, so that every step leads to a node that exists."""
        while True:
            other = (b for b in reversed(places(graph.node[identity].box).values()) if stands_for[b] != b)
            member = next(other, None)
            if member is None:
                return identity
            identity = stands_for[member] + identity.removeprefix(member)

    keep = {node.id: moved(node.id) for node in graph.nodes}
    kept = {node.id for node in graph.nodes if keep[node.id] == node.id}
    edges: dict[tuple[object, ...], Edge] = {}
    for edge in graph.edges:
        here, there = places(graph.node[edge.source].box), places(graph.node[edge.target].box)
        if any(there.get(row, member) != member for row, member in here.items()):
            continue
        source, target = keep[edge.source], keep[edge.target]
        edges.setdefault((source, target, edge.port, edge.tensor), replace(edge, source=source, target=target))
    nodes = tuple(node for node in graph.nodes if node.id in kept)
    used = {box for node in nodes for box in graph.ancestors(node.box)}
    return replace(graph, nodes=nodes, edges=tuple(edges.values()), boxes=tuple(b for b in graph.boxes if b.id in used))
