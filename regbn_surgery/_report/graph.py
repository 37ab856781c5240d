"""What pictures and pages draw: a run of a model as nodes, edges and nested boxes. Plain data, no torch, no tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

NodeKind = Literal["input", "module", "op", "view", "fusion", "regbn", "output"]

#: One colour for each modality, in order, as (light page, dark page): Okabe and Ito's palette, told apart by all
#: eyes. Streams of several modalities have their own.
PALETTE = (
    ("#0072b2", "#56b4e9"), ("#d55e00", "#ff9a4d"), ("#009e73", "#3ecfa5"), ("#9c6c00", "#e6c229"),
    ("#7a5195", "#c39be0"), ("#5c6b00", "#b5c944"),
)  # fmt: skip
MIXED = ("#b0487f", "#ee8fc0")
NEUTRAL = ("#6b7280", "#9aa3b2")


@dataclass(frozen=True)
class TensorFact:
    """A tensor as people read it: `8×96`, `float32`, `B×C`. `home` is the stream it belongs to."""

    shape: str
    dtype: str
    roles: str = ""
    home: tuple[str, ...] = ()
    touched: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """One call of a run: of a layer, a function or a RegBN; or an input or the output of the model.

    `id` is made of the path of the module that makes the call, the name and a counter, so that the same call has the
    same id before and after surgery. `box` is the id of the innermost box. `point` is the fusion point it belongs to.
    """

    id: str
    label: str
    kind: NodeKind
    box: str
    path: str = ""
    outputs: tuple[TensorFact, ...] = ()
    source: str = ""
    point: str = ""
    details: tuple[tuple[str, str], ...] = ()

    @property
    def home(self) -> tuple[str, ...]:
        """The streams of its outputs, together."""
        return tuple(dict.fromkeys(name for fact in self.outputs for name in fact.home))


@dataclass(frozen=True)
class Edge:
    """A tensor on its way from one node to another: the output number `port` of its source."""

    source: str
    target: str
    tensor: TensorFact
    port: int = 0


@dataclass(frozen=True)
class Box:
    """One call of a module that was looked into; or, where `repeats`, the repeats of one module over layers."""

    id: str
    label: str
    class_name: str
    parent: str
    path: str
    repeats: int = 0


@dataclass(frozen=True)
class ModelGraph:
    """A run of a model. The root box is the model itself and has the id `""`."""

    title: str
    modalities: tuple[str, ...]
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    boxes: tuple[Box, ...]  # parents before their children
    points: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # facts of each fusion point, by id
    changed: tuple[str, ...] = ()  # ids of the boxes that the surgery changed

    @cached_property
    def node(self) -> Mapping[str, Node]:
        return {node.id: node for node in self.nodes}

    @cached_property
    def box(self) -> Mapping[str, Box]:
        return {box.id: box for box in self.boxes}

    def ancestors(self, box: str) -> Iterator[str]:
        """The box itself and all that it lies in, up to the root."""
        while box in self.box:
            yield box
            if box == "":
                return
            box = self.box[box].parent

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """How many nodes lie in each box, at any depth."""
        count = dict.fromkeys(self.box, 0)
        for node in self.nodes:
            for box in self.ancestors(node.box):
                count[box] += 1
        return count

    @cached_property
    def marked(self) -> frozenset[str]:
        """The boxes in which, at any depth, there is a fusion point or a RegBN."""
        return frozenset(
            box for node in self.nodes if node.point or node.kind == "regbn" for box in self.ancestors(node.box)
        )

    def colour(self, home: tuple[str, ...], dark: bool = False) -> str:
        """The colour of a stream."""
        if not home:
            return NEUTRAL[dark]
        if len(home) > 1:
            return MIXED[dark]
        return PALETTE[self.modalities.index(home[0]) % len(PALETTE)][dark]

    def to_dict(self) -> dict[str, Any]:
        """The content as plain JSON types."""
        return {
            "title": self.title,
            "modalities": list(self.modalities),
            "nodes": [_node_dict(node) for node in self.nodes],
            "edges": [{"source": e.source, "target": e.target, "port": e.port} for e in self.edges],
            "boxes": [
                {"id": b.id, "label": b.label, "class": b.class_name, "parent": b.parent, "path": b.path,
                 "repeats": b.repeats} for b in self.boxes
            ],
            "points": {name: dict(facts) for name, facts in self.points.items()},
            "changed": list(self.changed),
        }  # fmt: skip


def _fact_dict(fact: TensorFact) -> dict[str, Any]:
    return {"shape": fact.shape, "dtype": fact.dtype, "roles": fact.roles, "home": list(fact.home),
            "touched": list(fact.touched)}  # fmt: skip


def _node_dict(node: Node) -> dict[str, Any]:
    return {
        "id": node.id, "label": node.label, "kind": node.kind, "box": node.box, "path": node.path,
        "outputs": [_fact_dict(fact) for fact in node.outputs], "home": list(node.home), "source": node.source,
        "point": node.point, "details": [list(pair) for pair in node.details],
    }  # fmt: skip
