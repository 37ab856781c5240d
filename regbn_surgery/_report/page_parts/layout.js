// Where everything goes: each open box lays out what it holds in layers, from the inside out.
//
// Calls run one after the other and modules nest, so what lies in one box has an order in which every edge goes
// forward: layers need no cycle removal, and a box is laid out without looking into its neighbours.
"use strict";

const GAP_X = 18, GAP_Y = 34, PAD = 12, HEAD = 24, NODE_H = 26, LINE_H = 13;
const LONGEST = 80; // an edge over more layers than this goes straight

function textWidth(text) {
  return Math.min(260, 6.6 * text.length + 20);
}

function nodeSize(node) {
  const lines = node.lines;
  return { w: Math.max(46, ...lines.map(textWidth)), h: NODE_H + (lines.length - 1) * LINE_H };
}

// items: [{id, w, h, order}], edges: [[i, j]] between indices with order[i] < order[j].
// Returns {x, y (centres), w, h, routes: points by edge index}.
function layered(items, edges) {
  const n = items.length, preds = [], succs = [];
  for (let i = 0; i < n; i++) { preds.push([]); succs.push([]); }
  edges.forEach(([a, b]) => { succs[a].push(b); preds[b].push(a); });
  const rank = new Int32Array(n);
  for (let i = 0; i < n; i++) for (const p of preds[i]) rank[i] = Math.max(rank[i], rank[p] + 1);
  for (let i = n - 1; i >= 0; i--) { // what depends on nothing here stands just above its first use
    if (!preds[i].length && succs[i].length) rank[i] = Math.max(0, Math.min(...succs[i].map((s) => rank[s])) - 1);
  }
  const cells = items.map((item, i) => ({ w: item.w, h: item.h, rank: rank[i], up: [], down: [], x: 0, y: 0 }));
  const chains = edges.map(([a, b]) => {
    const chain = [cells[a]], span = rank[b] - rank[a];
    if (span > 1 && span <= LONGEST) {
      for (let r = rank[a] + 1; r < rank[b]; r++) {
        const cell = { w: 6, h: 0, rank: r, up: [], down: [], x: 0, y: 0, bend: true };
        cells.push(cell);
        chain.push(cell);
      }
    }
    chain.push(cells[b]);
    for (let i = 1; i < chain.length; i++) { chain[i - 1].down.push(chain[i]); chain[i].up.push(chain[i - 1]); }
    return chain;
  });
  const layers = [];
  cells.forEach((cell) => (layers[cell.rank] ||= []).push(cell));
  for (let r = 0; r < layers.length; r++) layers[r] ||= [];
  const place = () => layers.forEach((layer) => layer.forEach((cell, i) => { cell.pos = i; }));
  place();
  const mean = (list, key) => list.reduce((sum, cell) => sum + cell[key], 0) / list.length;
  for (let sweep = 0; sweep < 6; sweep++) { // barycentres, downwards and upwards in turn
    const side = sweep % 2 ? "down" : "up";
    const order = sweep % 2 ? [...layers].reverse() : layers;
    for (const layer of order) {
      layer.forEach((cell) => { cell.want = cell[side].length ? mean(cell[side], "pos") : cell.pos; });
      layer.sort((a, b) => a.want - b.want || a.pos - b.pos);
      layer.forEach((cell, i) => { cell.pos = i; });
    }
  }
  for (const layer of layers) {
    let x = 0;
    for (const cell of layer) { cell.x = x + cell.w / 2; x += cell.w + GAP_X; }
    for (const cell of layer) cell.x -= (x - GAP_X) / 2;
  }
  for (let sweep = 0; sweep < 8; sweep++) { // towards the neighbours, without pushing anything over anything
    const side = sweep % 2 ? "down" : "up";
    for (const layer of sweep % 2 ? [...layers].reverse() : layers) {
      const want = layer.map((cell) => (cell[side].length ? mean(cell[side], "x") : cell.x));
      const left = [], right = [];
      let edge = -Infinity;
      layer.forEach((cell, i) => { left[i] = Math.max(want[i], edge + cell.w / 2); edge = left[i] + cell.w / 2 + GAP_X; });
      edge = Infinity;
      for (let i = layer.length - 1; i >= 0; i--) {
        right[i] = Math.min(want[i], edge - layer[i].w / 2);
        edge = right[i] - layer[i].w / 2 - GAP_X;
      }
      layer.forEach((cell, i) => { cell.x = (left[i] + right[i]) / 2; });
    }
  }
  let y = 0, low = Infinity, high = -Infinity;
  for (const layer of layers) {
    const tall = Math.max(0, ...layer.map((cell) => cell.h));
    for (const cell of layer) {
      cell.y = y + tall / 2;
      low = Math.min(low, cell.x - cell.w / 2);
      high = Math.max(high, cell.x + cell.w / 2);
    }
    y += tall + GAP_Y;
  }
  if (!cells.length) { low = 0; high = 40; y = GAP_Y + 10; }
  cells.forEach((cell) => { cell.x -= low; });
  return {
    w: high - low, h: y - GAP_Y,
    at: items.map((_, i) => [cells[i].x, cells[i].y]),
    routes: chains.map((chain) => chain.slice(1, -1).map((cell) => [cell.x, cell.y])),
  };
}

// The whole picture. view: {nodes, boxes (Map), children (Map: box -> item ids in order), edges, isOpen(id)}
// Returns {nodes: Map id -> rect, boxes: Map id -> rect, edges: [{edge, points}]}, in one coordinate system.
function arrange(view) {
  const home = new Map(); // id of every shown item -> the open boxes around it, outermost first
  const sizes = new Map(), inner = new Map();
  const routes = new Map(); // index of edge -> {box, points}
  const perBox = new Map();
  const chainOf = (id) => {
    if (!home.has(id)) {
      const chain = [id];
      let box = view.parent(id);
      while (box !== "") { chain.push(box); box = view.parent(box); }
      chain.push("");
      home.set(id, chain.reverse());
    }
    return home.get(id);
  };
  view.edges.forEach((edge, index) => {
    const a = chainOf(edge.source), b = chainOf(edge.target);
    let depth = 0;
    while (a[depth + 1] === b[depth + 1]) depth++;
    const box = a[depth];
    if (!perBox.has(box)) perBox.set(box, []);
    perBox.get(box).push([a[depth + 1], b[depth + 1], index]);
  });
  const measure = (box) => {
    const items = view.children(box).map((id) => {
      if (view.isBox(id) && view.isOpen(id)) measure(id);
      else sizes.set(id, nodeSize(view.item(id)));
      return { id, ...sizes.get(id) };
    });
    const index = new Map(items.map((item, i) => [item.id, i]));
    const seen = new Map(), edges = [];
    for (const [a, b, e] of perBox.get(box) || []) {
      const i = index.get(a), j = index.get(b);
      if (i >= j) continue;
      const key = i * items.length + j;
      if (!seen.has(key)) { seen.set(key, edges.length); edges.push([i, j, []]); }
      edges[seen.get(key)][2].push(e);
    }
    const result = layered(items, edges);
    result.routes.forEach((points, k) => edges[k][2].forEach((e) => routes.set(e, { box, points })));
    inner.set(box, { items, at: result.at });
    const title = box === "" ? 0 : Math.max(90, textWidth(view.item(box).title) + 16);
    sizes.set(box, { w: Math.max(result.w, title) + 2 * PAD, h: result.h + 2 * PAD + HEAD, slack: Math.max(0, (title - result.w) / 2) });
  };
  measure("");
  const nodes = new Map(), boxes = new Map(), origin = new Map();
  const settle = (box, x, y) => {
    const dx = x + PAD + sizes.get(box).slack, dy = y + HEAD + PAD;
    origin.set(box, [dx, dy]);
    const { items, at } = inner.get(box);
    items.forEach((item, i) => {
      const rect = { x: dx + at[i][0] - item.w / 2, y: dy + at[i][1] - item.h / 2, w: item.w, h: item.h };
      if (inner.has(item.id)) { boxes.set(item.id, rect); settle(item.id, rect.x, rect.y); } else nodes.set(item.id, rect);
    });
  };
  settle("", 0, 0);
  const edges = view.edges.map((edge, index) => {
    const a = nodes.get(edge.source), b = nodes.get(edge.target), route = routes.get(index);
    const [dx, dy] = route ? origin.get(route.box) : [0, 0];
    const between = route ? route.points.map(([px, py]) => [px + dx, py + dy]) : [];
    const back = b.y < a.y + a.h;
    return { edge, points: [[a.x + a.w / 2, back ? a.y + a.h / 2 : a.y + a.h], ...between, [b.x + b.w / 2, b.y]] };
  });
  return { nodes, boxes, edges, w: sizes.get("").w, h: sizes.get("").h };
}

function curve(points) {
  let [x, y] = points[0], path = `M${x.toFixed(1)} ${y.toFixed(1)}`;
  for (const [nx, ny] of points.slice(1)) {
    const mid = ((y + ny) / 2).toFixed(1);
    path += `C${x.toFixed(1)} ${mid} ${nx.toFixed(1)} ${mid} ${nx.toFixed(1)} ${ny.toFixed(1)}`;
    [x, y] = [nx, ny];
  }
  return path;
}
