// What is shown of a graph: open and closed boxes, calls left out, and the edges between what remains.
"use strict";

const mixed = (homes) => [...new Set(homes.flat())];

class Model {
  constructor(graph) {
    this.graph = graph;
    this.nodes = new Map(graph.nodes.map((node) => [node.id, node]));
    this.boxes = new Map(graph.boxes.map((box) => [box.id, box]));
    this.changed = new Set(graph.changed);
    this.order = new Map(graph.nodes.map((node, i) => [node.id, i]));
    this.first = new Map(); // of each box: the order of its first call
    this.count = new Map();
    this.marked = new Set();
    this.homes = new Map();
    for (const node of graph.nodes) {
      for (const box of this.around(node.box)) {
        if (!this.first.has(box)) this.first.set(box, this.order.get(node.id));
        this.count.set(box, (this.count.get(box) || 0) + 1);
        if (node.point || node.kind === "regbn") this.marked.add(box);
        if (node.home.length) this.homes.set(box, node.home); // of the last call in it: what it gives out, mostly
      }
    }
    for (const node of graph.nodes) node.lines = linesOf(node, graph);
    for (const box of graph.boxes) {
      box.title = box.repeats ? `${box.label} (${box.class}) ×${box.repeats}` : `${box.label} (${box.class})`;
      box.lines = [
        box.repeats ? `${box.label} ×${box.repeats}` : box.label, `${box.class}, ${this.count.get(box.id) || 0} calls`,
      ];
    }
    this.into = new Map(), this.outOf = new Map();
    for (const edge of graph.edges) {
      Object.assign(edge, this.nodes.get(edge.source).outputs[edge.port]);
      push(this.into, edge.target, edge);
      push(this.outOf, edge.source, edge);
    }
    this.lean = leanEdges(this);
  }

  * around(box) { // the box itself and all that it lies in
    while (this.boxes.has(box)) {
      yield box;
      if (box === "") return;
      box = this.boxes.get(box).parent;
    }
  }

  has(id) { return this.nodes.has(id) || (id !== "" && this.boxes.has(id)); }

  item(id) { return this.nodes.get(id) || this.boxes.get(id); }

  parent(id) { return this.nodes.has(id) ? this.nodes.get(id).box : this.boxes.get(id).parent; }

  // The view of `arrange`. `open` is a Set of box ids, `all` shows views and bookkeeping, too.
  view(open, all) {
    const isOpen = (id) => id === "" || open.has(id);
    const shownAs = new Map(); // of each box: "" where open, else the outermost closed one around it
    for (const box of this.graph.boxes) { // parents come first
      const above = box.id === "" ? "" : shownAs.get(box.parent);
      shownAs.set(box.id, above !== "" ? above : isOpen(box.id) ? "" : box.id);
    }
    const place = (node) => shownAs.get(node.box) || node.id;
    const children = new Map(), seen = new Set();
    const add = (id, parent) => { if (!seen.has(id)) { seen.add(id); push(children, parent, id); } };
    for (const node of this.graph.nodes) {
      if (!all && !this.lean.keep.has(node.id)) continue;
      const chain = [...this.around(node.box)].reverse();
      for (const box of chain.slice(1)) {
        add(box, this.boxes.get(box).parent);
        if (!isOpen(box)) break;
      }
      if (!shownAs.get(node.box)) add(node.id, node.box);
    }
    const merged = new Map();
    for (const edge of all ? this.graph.edges : this.lean.edges) {
      const source = place(this.nodes.get(edge.source)), target = place(this.nodes.get(edge.target));
      if (source === target || !seen.has(source) || !seen.has(target)) continue;
      const key = JSON.stringify([source, target, edge.home]);
      if (merged.has(key)) merged.get(key).tensors.push(edge);
      else merged.set(key, { source, target, home: edge.home, tensors: [edge] });
    }
    return {
      edges: [...merged.values()], isOpen, isBox: (id) => !this.nodes.has(id),
      children: (box) => children.get(box) || [], parent: (id) => this.parent(id), item: (id) => this.item(id),
    };
  }
}

function push(map, key, value) {
  if (map.has(key)) map.get(key).push(value); else map.set(key, [value]);
}

function linesOf(node, graph) {
  const shape = node.outputs.length ? node.outputs[0].shape : "";
  if (node.kind === "regbn") return [`RegBN ${node.label}`];
  if (node.point) return [node.label, graph.points[node.point] ? graph.points[node.point].kind : "fusion"];
  return node.kind === "input" && shape ? [node.label, shape] : [node.label];
}

// Views and what carries no modality are left out; what went through them goes straight on.
function leanEdges(model) {
  const carrying = (node) => node.outputs.some((fact) => fact.home.length);
  const always = new Set(["input", "output", "regbn", "fusion"]);
  const keep = new Set();
  for (const node of model.graph.nodes) {
    if (node.point || always.has(node.kind) || (node.kind !== "view" && carrying(node))) keep.add(node.id);
  }
  const behind = new Map(), edges = [], seen = new Set();
  for (const node of model.graph.nodes) {
    const incoming = model.into.get(node.id) || [];
    if (!keep.has(node.id)) {
      behind.set(node.id, [...new Set(incoming.flatMap((edge) => behind.get(edge.source) || []))]);
      continue;
    }
    behind.set(node.id, [node.id]);
    for (const edge of incoming) {
      if (!carrying(model.nodes.get(edge.source))) continue;
      for (const source of behind.get(edge.source) || []) {
        const key = JSON.stringify([source, node.id, edge.shape, edge.home]);
        if (!seen.has(key)) { seen.add(key); edges.push({ ...edge, source }); }
      }
    }
  }
  return { keep, edges };
}
