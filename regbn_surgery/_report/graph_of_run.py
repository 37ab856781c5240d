"""Makes the graph that pictures draw out of an analysed run, and out of the same run with RegBN in it."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .._ops import Value
from .._types import FusionPoint, Plan, PlannedSite, Source
from .graph import Box, Edge, ModelGraph, Node, NodeKind, TensorFact
from .repeats import with_repeats
from .shapes import SPATIAL, AxisNames, axis_names, meeting_texts, roles_text, shape_text, tensor_text
from .tables import cost_text

if TYPE_CHECKING:
    from .._analysis import Analysis
    from .._trace import Call, Trace

#: Calls that say nothing about the model: they look at the same numbers in another way.
_VIEWS: tuple[Value, ...] = ("reshapes", "permutes", "casts", "splits", "takes_part", "stretches", "integers")


def graph_of(analysis: Analysis) -> ModelGraph:
    """The run in evaluation mode, with lineages and fusion points."""
    run, inspection = analysis.runs[0], analysis.inspection

    calls = _calls_of_points(analysis)
    named = _axes_at_points(analysis, calls)

    def fact(uid: int) -> TensorFact:
        info, lineage = run.trace.tensors[uid], run.flow.lineages.get(uid)
        home, touched = (lineage.home, lineage.touched) if lineage is not None else (frozenset(), frozenset())
        names = named.get(uid, SPATIAL)
        known = roles_text(run.layout(uid), len(info.shape), names) if lineage is not None else ""
        return _fact(info, "" if set(known) <= {"?", "×"} else known, run.order, home, touched)

    drawn = _Drawing(run.trace, fact, {index: point for point, indices in calls.items() for index in indices})
    facts = {point.id: _point_facts(point) for point in inspection.fusion_points}
    return with_repeats(drawn.graph(inspection.model, tuple(m.name for m in inspection.modalities), facts))


def graph_after(before: ModelGraph, analysis: Analysis, plan: Plan) -> ModelGraph:
    """The same model after surgery: its run with the plan's RegBN in it, and what is known of every other call."""
    from .._analysis import insert_regbn

    run = analysis.runs[0].trace
    trace = run.on(insert_regbn(run.graph, plan, analysis))
    places = {str(call.module): call.node.meta["regbn"] for call in trace.calls if "regbn" in call.node.meta}
    drawn = _Drawing(trace, lambda uid: _fact(trace.tensors[uid], "", (), (), ()), {})
    plain = drawn.graph(before.title, before.modalities, before.points)
    names = {point.id: axis_names(point) for point in analysis.inspection.fusion_points}
    nodes = tuple(_known_again(node, before, places, names) for node in plain.nodes)
    by_id = {node.id: node for node in nodes}
    edges = tuple(_edge_known_again(edge, by_id[edge.source]) for edge in plain.edges)
    changed = tuple(box.id for box in plain.boxes if box.path in {site.host for site in plan.sites})
    return with_repeats(replace(plain, nodes=nodes, edges=edges, changed=changed))


def _known_again(
    node: Node, before: ModelGraph, places: Mapping[str, PlannedSite], names: Mapping[str, AxisNames]
) -> Node:
    if node.kind == "regbn":
        site = places[node.path]
        homes = (site.f.home, site.g.home)
        outputs = tuple(replace(fact, home=home) for fact, home in zip(node.outputs, homes, strict=True))
        details = _site_details(site, names.get(site.point or "", SPATIAL))
        return replace(node, outputs=outputs, details=details, source="")
    known = before.node.get(node.id)
    if known is None:
        return node
    return replace(known, box=node.box)


def _edge_known_again(edge: Edge, source: Node) -> Edge:
    """What flows along it is what its source gives out."""
    return replace(edge, tensor=source.outputs[edge.port]) if edge.port < len(source.outputs) else edge


def _site_details(site: PlannedSite, names: AxisNames) -> tuple[tuple[str, str], ...]:
    """`names` are those of the axes at its fusion point, as in the tables."""
    return (
        ("rule", site.rule),
        ("fusion point", site.point or " and ".join(site.pair or ())),
        ("f (normalised)", tensor_text(site.f.home, site.f.shape, site.f.layout, names)),
        ("g", tensor_text(site.g.home, site.g.shape, site.g.layout, names)),
        ("reduce", site.reduce),
        *((f"{mask.side} without padding", mask.argument) for mask in site.padding or ()),
        ("replaces", "f and g" if site.replace == "both" else "f only"),
        ("projection W", "×".join(map(str, site.projection_shape))),
        *((f"option {name}", str(value)) for name, value in site.options.items()),
    )


def _fact(info: Any, roles: str, order: Sequence[str], home: Iterable[str], touched: Iterable[str]) -> TensorFact:
    homes, all_touched = set(home), set(touched)
    return TensorFact(
        shape_text(info.shape),
        str(info.dtype).removeprefix("torch."),
        roles,
        tuple(name for name in order if name in homes),
        tuple(name for name in order if name in all_touched),
    )


def _point_facts(point: FusionPoint) -> dict[str, Any]:
    return {
        "kind": point.kind,
        "level": point.level,
        "owner": point.owner,
        "owner_class": point.owner_class,
        "selected_by_default": point.selected_by_default,
        "source": "" if point.source is None else short_place(point.source),
        "operands": meeting_texts(point),
        "costs": list(dict.fromkeys(cost_text(site) for site in point.sites)),
        "note": point.note,
    }


def _axes_at_points(analysis: Analysis, calls: Mapping[str, Sequence[int]]) -> dict[int, AxisNames]:
    """The names of the axes of every tensor that an attention takes or makes: those that the tables use."""
    points = {point.id: point for point in analysis.inspection.fusion_points}
    recorded = analysis.runs[0].trace.calls
    found: dict[int, AxisNames] = {}
    for name, indices in calls.items():
        if points[name].kind != "attention":
            continue
        for call in (recorded[index] for index in indices):
            found.update(dict.fromkeys((*call.inputs, *call.outputs), axis_names(points[name])))
    return found


def _calls_of_points(analysis: Analysis) -> dict[str, list[int]]:
    """The operations of the evaluation run that belong to each fusion point: found by owner, line and name.

    Several calls of one name in one line are taken in order.
    """
    trace = analysis.runs[0].trace
    candidates: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for point in analysis.inspection.fusion_points:
        candidates[point.owner, str(point.source), point.op].append(point.id)
    keys: dict[tuple[str, str, str], dict[Any, None]] = defaultdict(dict)
    calls: dict[str, list[int]] = defaultdict(list)
    for meeting in analysis.runs[0].flow.meetings:
        frame = trace.frames[meeting.op.frame]
        while frame.path == "?" and frame.parent is not None:
            frame = trace.frames[frame.parent]
        place = (frame.path, str(meeting.op.source), meeting.op.name)
        if place not in candidates:
            continue
        keys[place].setdefault(meeting.op.key)
        which = list(keys[place]).index(meeting.op.key)
        point_id = candidates[place][min(which, len(candidates[place]) - 1)]
        calls[point_id] += [meeting.op.index, *(op.index for op, _ in meeting.more)]
    return calls


@dataclass
class _Drawing:
    """Goes through a trace once and writes down nodes, edges and boxes."""

    trace: Trace
    fact: Any
    points: Mapping[int, str]
    boxes: dict[int, str] = field(default_factory=dict)  # id of the box of each frame
    producers: dict[int, tuple[str, int]] = field(default_factory=dict)  # which output of which node is each tensor
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[tuple[str, str, int], Edge] = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def graph(self, title: str, modalities: tuple[str, ...], points: Mapping[str, Mapping[str, Any]]) -> ModelGraph:
        frames = self._boxes()
        for name, uid in self.trace.inputs:
            self.nodes[f"input {name}"] = Node(f"input {name}", name, "input", "", name, (self.fact(uid),))
            self.producers[uid] = f"input {name}", 0
        for op in self.trace.calls:
            if "regbn" in op.node.meta:
                self._regbn(op)
            else:
                self._op(op)
        self._output()
        return ModelGraph(title, modalities, tuple(self.nodes.values()), tuple(self.edges.values()), frames, points)

    def _boxes(self) -> tuple[Box, ...]:
        made: list[Box] = []
        seen: Counter[str] = Counter()
        for frame in self.trace.frames:
            parent = frame.parent
            if parent is None:
                self.boxes[frame.index] = ""
                made.append(Box("", frame.class_name, frame.class_name, "", ""))
                continue
            above = self.trace.frames[parent].path
            name = frame.path if frame.path != "?" else f"{above}.({frame.class_name})".lstrip(".")
            seen[name] += 1
            identity = name if seen[name] == 1 else f"{name} (call {seen[name]})"
            label = identity.removeprefix(f"{above}.") if above else identity
            self.boxes[frame.index] = identity
            made.append(Box(identity, label, frame.class_name, self.boxes[parent], frame.path))
        return tuple(made)

    def _op(self, op: Call) -> None:
        box = self.boxes[op.frame]
        label = op.name if op.module is None else _last(op.module, self.trace.frames[op.frame].path, op.name)
        name = op.module or f"{box}/{op.name}"
        self.counts[box, name] += 1
        count = self.counts[box, name]
        identity = f"{name}" if count == 1 else f"{name} ({count})"
        if op.module is not None and identity in self.nodes:  # the same layer, called from another frame
            identity = f"{identity} in {box}"
        point = self.points.get(op.index, "")
        kind: NodeKind = "module" if op.is_module else "op"
        if point:
            kind = "fusion"
        elif op.row.does(*_VIEWS):
            kind = "view"
        parameters = [p for uid in op.inputs if (p := self.trace.tensors[uid].parameter) and uid not in self.producers]
        details = (("operation", op.name), *((("reads", ", ".join(parameters)),) if parameters else ()))
        outputs = tuple(self.fact(uid) for uid in op.outputs)
        source = "" if op.source is None else f"{short_place(op.source)} in {op.source.function}"
        self.nodes[identity] = Node(identity, label, kind, box, op.module or "", outputs, source, point, details)
        self._connect(identity, op.inputs, op.outputs)

    def _regbn(self, op: Call) -> None:
        path = op.module or ""
        self.counts["", path] += 1
        count = self.counts["", path]
        identity = f"{path} (RegBN)" if count == 1 else f"{path} (RegBN, call {count})"
        outputs = tuple(self.fact(uid) for uid in op.outputs)
        self.nodes[identity] = Node(identity, path.rpartition(".")[2], "regbn", self.boxes[op.frame], path, outputs)
        self._connect(identity, op.inputs, op.outputs)

    def _output(self) -> None:
        outputs = self.trace.frames[0].outputs
        self.nodes["output"] = Node("output", "output", "output", "", "", tuple(self.fact(uid) for uid in outputs))
        self._connect("output", outputs, ())

    def _connect(self, identity: str, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        for uid in inputs:
            source, port = self.producers.get(uid, (identity, 0))
            if source != identity:
                self.edges.setdefault((source, identity, uid), Edge(source, identity, self.fact(uid), port))
        for port, uid in enumerate(outputs):
            self.producers[uid] = identity, port


def short_place(source: Source) -> str:
    """`model.py:12`: a file from the folder of installed packages or from here on; elsewhere its whole path."""
    path = re.split(r"[\\/](?:site|dist)-packages[\\/]", source.file)[-1]
    here = os.getcwd() + os.sep
    return f"{path.removeprefix(here)}:{source.line}"


def _last(module: str, above: str, class_name: str) -> str:
    """`fc1: Linear`: a layer by its name within its owner, and its class."""
    name = module.removeprefix(f"{above}.") if above else module
    return f"{name}: {class_name}"
