"""The graph behind pictures: made from a run, with repeats found, boxes closed and the unessential left out."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from importlib import metadata

import pytest
import torch
from torch import nn

from regbn_surgery._api import operate
from regbn_surgery._inspecting import analysed
from regbn_surgery._report.dot import PictureError, draw, to_dot
from regbn_surgery._report.explorer import to_explorer
from regbn_surgery._report.graph_of_run import graph_after, graph_of, short_place
from regbn_surgery._report.repeats import first_of_each
from regbn_surgery._report.scene import essential, scene_of, well_opened
from regbn_surgery._rules import Rules
from regbn_surgery._types import Source

from .graphs import POINT, after, before, box, graph, node


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.fc(x).view(-1, 8)


class Two(nn.Module):
    """Layers that repeat, a module called twice, a view, and two meetings in one line."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))
        self.shared = Layer()
        self.right = nn.Linear(5, 8)

    def forward(self, x, y):
        for layer in self.layers:
            x = layer(x)
        y = self.right(y)
        x, y = self.shared(x), self.shared(y)
        return torch.cat([x, y], 1) + 1, torch.cat([y, x], 1)


@pytest.fixture(scope="module")
def two():
    torch.manual_seed(0)
    model, inputs = Two(), (torch.randn(2, 8), torch.randn(2, 5))
    rules = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "x"}]}
    plan, analysis, _ = operate(model, Rules.from_dict(rules), inputs)
    old = graph_of(analysis)
    return old, graph_after(old, analysis, plan)


class TestOfARun:
    def test_nodes_say_what_ran_and_what_it_carried(self, two):
        old, _ = two
        fc = old.node["layers.1.fc"]
        assert (fc.kind, fc.label, fc.box, fc.home) == ("module", "fc: Linear", "layers.1", ("x",))
        assert (fc.outputs[0].shape, fc.outputs[0].dtype, fc.outputs[0].roles) == ("2×8", "float32", "B×C")
        assert old.node["layers.1/view"].kind == "view"
        assert "test_graph.py" in old.node["layers.1/add"].source

    def test_places_are_short(self):
        far = Source("/usr/lib/python3/site-packages/pack/mod.py", 3, "f")
        assert short_place(far) == "pack/mod.py:3"
        assert short_place(Source(f"{os.getcwd()}/model.py", 4, "f")) == "model.py:4"
        assert short_place(Source("/elsewhere/model.py", 5, "f")) == "/elsewhere/model.py:5"

    def test_a_module_called_twice_has_two_boxes(self, two):
        old, _ = two
        assert {"shared", "shared (call 2)"} <= set(old.box)
        assert old.node["shared (call 2)/add"].home == ("y",)

    def test_edges_are_the_tensors(self, two):
        old, _ = two
        into = {edge.source for edge in old.edges if edge.target == "layers.1/add"}
        assert into == {"layers.0/add", "layers.1/view"}
        assert {edge.source for edge in old.edges if edge.target == "output"} == {"/add", "/cat (2)"}

    def test_each_meeting_of_a_line_has_its_own_point(self, two):
        old, _ = two
        assert [old.node[name].point for name in ("/cat", "/cat (2)")] == ["cat", "cat_1"]
        assert old.marked == {""}
        assert old.points["cat"]["operands"] == ["x 2×8 (B×C)", "y 2×8 (B×C)"]

    def test_after_surgery_what_was_there_is_known_again(self, two):
        old, new = two
        assert {node.id for node in new.nodes} - {node.id for node in old.nodes} >= {
            "regbn_late (RegBN)", "regbn_late_1 (RegBN)",
        }  # fmt: skip
        assert new.node["layers.1.fc"] == old.node["layers.1.fc"]
        assert new.node["/cat"].point == "cat"
        site = new.node["regbn_late (RegBN)"]
        assert [fact.home for fact in site.outputs] == [("x",), ("y",)]
        assert ("rule", "late") in site.details
        homes = [edge.tensor.home for edge in new.edges if edge.source == site.id and edge.target == "/cat"]
        assert homes == [("x",), ("y",)]
        assert new.changed == ("",)

    def test_it_is_plain_json(self, two):
        for made in two:
            assert json.loads(json.dumps(made.to_dict())) == made.to_dict()

    def test_parents_come_before_their_children(self, two):
        for made in two:
            seen = set()
            for each in made.boxes:
                assert each.id == "" or each.parent in seen
                seen.add(each.id)


class TestRepeats:
    def test_a_row_of_equal_layers_gets_a_box(self, two):
        old, _ = two
        row = old.box["layers.0 … layers.3"]
        assert (row.repeats, row.class_name) == (4, "Layer")
        assert old.box["layers.2"].parent == row.id

    @pytest.mark.parametrize("count", [2, 3])
    def test_so_many_make_a_row(self, count):
        assert any(each.repeats for each in before(count).boxes) == (count >= 3)

    def test_a_layer_that_differs_ends_the_row(self):
        nodes = [node(f"layers.{i}.fc", f"layers.{i}", "module") for i in range(7)]
        nodes.append(node("layers.3/extra", "layers.3"))
        made = graph(nodes, (), [box(f"layers.{i}") for i in range(7)])
        assert [(each.id, each.repeats) for each in made.boxes if each.repeats] == [
            ("layers.0 … layers.2", 3), ("layers.4 … layers.6", 3),
        ]  # fmt: skip

    def test_the_first_stands_for_all(self):
        lean = first_of_each(before(4))
        assert {each.id for each in lean.nodes if each.box} == {f"encoder.layers.0.fc{i}" for i in range(3)}
        pairs = {(edge.source, edge.target) for edge in lean.edges}
        assert ("input image", "encoder.layers.0.fc0") in pairs
        assert ("encoder.layers.0.fc2", "/cat") in pairs  # it comes out of the last one
        assert all(source != target for source, target in pairs)

    def test_repeats_within_repeats(self):
        boxes, nodes = [], []
        for i in range(3):
            boxes.append(box(f"outer.{i}"))
            for j in range(3):
                boxes.append(box(f"outer.{i}.inner.{j}", f"outer.{i}"))
                nodes.append(node(f"outer.{i}.inner.{j}.fc", f"outer.{i}.inner.{j}", "module"))
        pairs = [f"{a.id} > {b.id}" for a, b in itertools.pairwise(nodes)]
        lean = first_of_each(
            graph([*nodes, node("output", kind="output")], [*pairs, f"{nodes[-1].id} > output"], boxes)
        )
        assert [each.id for each in lean.nodes] == ["outer.0.inner.0.fc", "output"]
        assert [(e.source, e.target) for e in lean.edges] == [("outer.0.inner.0.fc", "output")]


class TestScenes:
    def test_a_closed_box_stands_for_what_is_in_it(self):
        made = before(4)
        scene = scene_of(made, ())
        assert [each.id for each in scene.closed] == ["encoder"]
        pairs = {(edge.source, edge.target): count for edge, count in scene.edges}
        assert pairs[("input image", "encoder")] == 1
        assert pairs[("encoder", "/cat")] == 1
        assert len(pairs) == 5

    def test_a_box_in_a_closed_box_is_not_open(self):
        scene = scene_of(before(2), ["encoder.layers.0"])
        assert scene.open == {""}

    def test_boxes_with_points_are_opened_first(self):
        nodes = [node(f"big/{i}", "big") for i in range(90)] + [node("far.in.it/cat", "far.in", point="cat")]
        made = graph(nodes, (), [box("big"), box("far"), box("far.in", "far")], {"cat": POINT})
        assert well_opened(made, 60) == {"far", "far.in"}
        assert well_opened(made, 200) == {"", "big", "far", "far.in"}

    def test_what_goes_through_a_view_goes_straight_on(self):
        nodes = [node("a"), node("b", kind="view"), node("c", kind="view"), node("d"), node("mask", home=())]
        made = essential(graph(nodes, ["a > b", "b > c", "c > d", "mask > d"]))
        assert [each.id for each in made.nodes] == ["a", "d"]
        assert [(e.source, e.target) for e in made.edges] == [("a", "d")]


class TestDot:
    def test_what_stands_in_it(self):
        text = to_dot(after(4))
        assert 'subgraph "cluster encoder.layers.0 … encoder.layers.3"' in text
        assert "×4\\lLayer\\l" in text
        assert "encoder.layers.1" not in text
        assert 'label="cat\\nconcat"' in text
        assert 'label="RegBN\\nregbn_late"' in text
        assert '"embed" -> "regbn_late (RegBN)" [color="#d55e00"' in text

    def test_graphviz_reads_it_and_draws_every_node(self):
        pytest.importorskip("pygraphviz")
        svg = draw(after(4), "svg").decode()
        for name in ("fc0: Linear", "cat", "regbn_late", "encoder", "Encoder"):
            assert f">{name}</text>" in svg
        assert draw(after(4), "png").startswith(b"\x89PNG")

    def test_names_that_mean_something_in_dot_do_not(self):
        pygraphviz = pytest.importorskip("pygraphviz")
        evil = 'a"];b->c;"\\N \\ <b>x</b>\n{}'
        made = graph([node("x", kind="module", label=evil), node(evil, kind="module")], [f"x > {evil}"], title=evil)
        read = pygraphviz.AGraph(string=to_dot(made))
        assert len(read.nodes()) == 2
        assert len(read.edges()) == 1
        assert b"alert" not in draw(made, "svg")
        assert "&lt;b&gt;" in draw(made, "svg").decode()

    def test_the_title_counts_and_what_nothing_reads_is_left_out(self):
        class Reading(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two = nn.Linear(6, 8), nn.Linear(5, 4)

            def forward(self, scan, table, age):
                return torch.cat([self.one(scan), self.two(table)], 1)

        rules = Rules.from_dict({"version": 1, "rules": [{"id": "r", "match": {}, "normalize": "scan"}]})
        example = (torch.randn(8, 6), torch.randn(8, 5), torch.randn(8))
        plan, analysis, _ = operate(Reading(), rules, example)
        old = graph_of(analysis)
        plain, rewritten = to_dot(old), to_dot(graph_after(old, analysis, plan))
        assert 'label="Reading: 1 fusion point"' in plain
        assert 'label="Reading: 1 fusion point, 1 RegBN"' in rewritten
        assert "scan" in plain
        assert "age" not in plain

    def test_without_graphviz_the_message_says_what_to_do(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pygraphviz", None)
        assert to_dot(before()).startswith("digraph")
        with pytest.raises(PictureError, match=r"regbn_surgery\[viz\][\s\S]*--format dot"):
            draw(before(), "svg")


def _object(required, **optional):
    both = {**required, **optional}
    return {"type": "object", "required": list(required), "properties": both, "additionalProperties": False}


def _list(items):
    return {"type": "array", "items": items}


TEXT = {"type": "string"}
PAIRS = _list(_object({"key": TEXT, "value": TEXT}))
#: What of Model Explorer's graph format is written here, as its graph_builder.py has it (version 0.1.34).
EXPLORER = _object({
    "label": TEXT,
    "graphs": _list(_object({
        "id": TEXT,
        "nodes": _list(_object(
            {"id": TEXT, "label": TEXT},
            namespace=TEXT, attrs=PAIRS,
            incomingEdges=_list(_object({"sourceNodeId": TEXT}, sourceNodeOutputId=TEXT, targetNodeInputId=TEXT)),
            outputsMetadata=_list(_object({"id": TEXT, "attrs": PAIRS})),
            style=_object({}, backgroundColor=TEXT, borderColor=TEXT, hoveredBorderColor=TEXT),
        )),
    })),
})  # fmt: skip


class TestExplorer:
    def test_graphs_nodes_and_edges(self):
        made = to_explorer(before(4), after(4))
        assert [each["id"] for each in made["graphs"]] == ["before", "after"]
        nodes = {each["id"]: each for each in made["graphs"][1]["nodes"]}
        fc = nodes["encoder.layers.1.fc0"]
        assert fc["namespace"] == "encoder/layers.0 … layers.3/layers.1"
        assert fc["incomingEdges"] == [
            {"sourceNodeId": "encoder.layers.0.fc2", "sourceNodeOutputId": "0", "targetNodeInputId": "0"}
        ]
        assert nodes["regbn_late (RegBN)"]["style"] == {"backgroundColor": "#f7a8c4"}
        assert {"key": "tensor_shape", "value": "float32[2,8]"} in fc["outputsMetadata"][0]["attrs"]

    def test_it_has_the_fields_that_model_explorer_knows(self, two):
        jsonschema = pytest.importorskip("jsonschema")
        made = to_explorer(*two)
        jsonschema.validate(made, EXPLORER)
        made["graphs"][0]["nodes"][0]["colour"] = "red"
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(made, EXPLORER)

    def test_model_explorers_own_classes_take_it(self, two, monkeypatch):
        """Its graph classes, read from the package without importing it, which would want a web server."""
        dacite = pytest.importorskip(
            "dacite", reason="pip install dacite; pip install --no-deps ai-edge-model-explorer"
        )
        try:
            place = metadata.distribution("ai-edge-model-explorer").locate_file("model_explorer/graph_builder.py")
        except metadata.PackageNotFoundError:
            pytest.skip("Model Explorer is not installed: pip install --no-deps ai-edge-model-explorer")
        spec = importlib.util.spec_from_file_location("_explorer_graph_builder", str(place))
        classes = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, classes)
        spec.loader.exec_module(classes)
        for made in json.loads(json.dumps(to_explorer(*two)))["graphs"]:
            read = dacite.from_dict(classes.Graph, made, config=dacite.Config(strict=True))
            assert [each.id for each in read.nodes] == [each["id"] for each in made["nodes"]]
            assert all(edge.sourceNodeId in {n.id for n in read.nodes} for n in read.nodes for edge in n.incomingEdges)


def test_points_of_attention_and_their_calls():
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.kv = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x, y):
            scores = self.q(x) @ self.kv(y).transpose(1, 2)
            return scores.softmax(-1) @ y

    made = graph_of(analysed(Cross(), (torch.randn(2, 3, 8), torch.randn(2, 5, 8))))
    assert [each.label for each in made.nodes if each.point] == ["matmul", "matmul"]
    assert {each.point for each in made.nodes} == {"", "attention"}


class Attending(nn.Module):
    """Words ask an image; the heads are split by hand, so that the scores and the values have an axis of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.image = nn.Embedding(20, 8), nn.Linear(5, 8)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, words, image):
        words, image = self.words(words), self.image(image)
        q, k, v = (x.unflatten(2, (2, 4)).transpose(1, 2) for x in (self.q(words), self.k(image), self.v(image)))
        return nn.functional.scaled_dot_product_attention(q, k, v)


def test_the_axes_of_an_attention_are_named_as_in_the_tables():
    inputs = (torch.randint(20, (2, 6)), torch.randn(2, 7, 5))
    rules = {"version": 1, "rules": [{"id": "cross", "match": {"kind": "attention"}, "normalize": "words"}]}
    plan, analysis, _ = operate(Attending(), Rules.from_dict(rules), inputs)
    before = graph_of(analysis)
    regbn = next(n for n in graph_after(before, analysis, plan).nodes if n.kind == "regbn")
    details = dict(regbn.details)
    assert details["f (normalised)"] == "words 2×6×8 (B×tokens×C)"
    assert details["g"] == "image 2×7×8 (B×tokens×C)"
    (facts,) = before.points.values()
    assert all("×tokens×" in operand for operand in facts["operands"])
    (call,) = (n for n in before.nodes if n.kind == "fusion")
    taken = [edge.tensor for edge in before.edges if edge.target == call.id]
    assert {fact.roles for fact in (*taken, *call.outputs)} == {"B×heads×tokens×C"}
