"""Graphs made by hand, for tests of what draws them."""

from __future__ import annotations

from regbn_surgery._report.graph import Box, Edge, ModelGraph, Node, TensorFact
from regbn_surgery._report.repeats import with_repeats


def fact(*home: str, shape: str = "2×8") -> TensorFact:
    return TensorFact(shape, "float32", "B×C", home, home)


def node(identity: str, box: str = "", kind: str = "op", home: tuple[str, ...] = ("image",), **more) -> Node:
    label = more.pop("label", identity.rpartition("/")[2].rpartition(".")[2])
    return Node(identity, label, kind, box, outputs=(fact(*home),), **more)


def edges(nodes: dict[str, Node], *pairs: str) -> tuple[Edge, ...]:
    made = []
    for pair in pairs:
        source, target = pair.split(" > ")
        made.append(Edge(source, target, nodes[source].outputs[0]))
    return tuple(made)


def graph(nodes, pairs, boxes=(), points=None, changed=(), title="Model") -> ModelGraph:
    by_id = {item.id: item for item in nodes}
    root = Box("", title, title, "", "")
    made = ModelGraph(
        title, ("image", "text"), tuple(nodes), edges(by_id, *pairs), (root, *boxes), points or {}, changed
    )
    return with_repeats(made)


def box(identity: str, parent: str = "", class_name: str = "Block") -> Box:
    label = identity.removeprefix(f"{parent}.") if parent else identity
    return Box(identity, label, class_name, parent, identity)


POINT = {"kind": "concat", "level": "late", "owner": "", "owner_class": "Model", "selected_by_default": True,
         "source": "/home/me/model.py:7", "operands": ["image 2×8 (B×C)", "text 2×8 (B×C)"], "costs": ["W 8×8"],
         "note": ""}  # fmt: skip


def layers(count: int, each: int = 3):
    """Two streams: `image` through `count` layers of `each` calls, `text` through one; they meet in `cat`."""
    nodes = [node("input image", kind="input"), node("input text", kind="input", home=("text",))]
    boxes, pairs, last = [box("encoder", class_name="Encoder")], [], "input image"
    for i in range(count):
        name = f"encoder.layers.{i}"
        boxes.append(box(name, "encoder", "Layer"))
        for j in range(each):
            nodes.append(node(f"{name}.fc{j}", name, "module", label=f"fc{j}: Linear"))
            pairs.append(f"{last} > {name}.fc{j}")
            last = f"{name}.fc{j}"
    nodes += [
        node("embed", kind="module", home=("text",), label="embed: Embedding"),
        node("/cat", kind="fusion", home=("image", "text"), point="cat", source="/home/me/model.py:7 in forward"),
        node("output", kind="output", home=("image", "text")),
    ]
    pairs += ["input text > embed", "embed > /cat", f"{last} > /cat", "/cat > output"]
    return nodes, pairs, boxes


def before(count: int = 4) -> ModelGraph:
    nodes, pairs, boxes = layers(count)
    return graph(nodes, pairs, boxes, {"cat": POINT})


def after(count: int = 4) -> ModelGraph:
    nodes, pairs, boxes = layers(count)
    nodes.insert(-2, Node("regbn_late (RegBN)", "regbn_late", "regbn", "", "regbn_late", (fact("image"), fact("text"))))
    last = f"encoder.layers.{count - 1}.fc2"
    pairs = [pair for pair in pairs if not pair.endswith("> /cat")]
    pairs += [f"{last} > regbn_late (RegBN)", "embed > regbn_late (RegBN)", "regbn_late (RegBN) > /cat"]
    return graph(nodes, pairs, boxes, {"cat": POINT}, changed=("",))


def crossing(count: int = 6) -> ModelGraph:
    """One text that every layer reads deep inside, and a first layer that the last one and the output read again."""
    nodes = [node("input image", kind="input"), node("input text", kind="input", home=("text",))]
    boxes, pairs, last = [box("decoder", class_name="Decoder")], [], "input image"
    for i in range(count):
        name = f"decoder.{i}"
        inside = f"{name}.cross"
        boxes += [box(name, "decoder", "Layer"), box(inside, name, "Attention")]
        for part, where in (("norm", name), ("query", inside), ("key", inside), ("join", inside), ("out", name)):
            nodes.append(node(f"{where}.{part}", where, "module", label=f"{part}: Linear"))
        pairs += [f"{last} > {name}.norm", f"{name}.norm > {inside}.query", f"input text > {inside}.key"]
        pairs += [f"{inside}.query > {inside}.join", f"{inside}.key > {inside}.join", f"{inside}.join > {name}.out"]
        pairs.append(f"{last} > {name}.out")
        last = f"{name}.out"
    nodes.append(node("output", kind="output", home=("image", "text")))
    pairs += [f"{last} > output", "decoder.0.cross.join > output", "input text > output"]
    return graph(nodes, pairs, boxes)
