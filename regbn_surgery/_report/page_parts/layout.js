// Where everything goes: each open box lays out what it holds in layers, from the inside out.
//
// Calls run one after the other and modules nest, so what lies in one box has an order in which every edge goes
// forward: layers need no cycle removal, and a box is laid out without looking into its neighbours.
"use strict";

const GAP_X = 18, GAP_Y = 34, GAP_IN = 6, PAD = 12, HEAD = 24, NODE_H = 26, LINE_H = 13;
const LONGEST = 80; // an edge over more layers than this goes straight

function textWidth(text) {
  return Math.min(260, 6.6 * text.length + 20);
}

function nodeSize(node) {
  const lines = node.lines;
  return { w: Math.max(46, ...lines.map(textWidth)), h: NODE_H + (lines.length - 1) * LINE_H };
}

// items: [{id, w, h, side}], edges: [[i, j, legs, colour]] between indices with i < j. `side`: -1 at the top of the box,
// where edges come in, 1 at its bottom, where they leave it, 0 between.
// Returns {at: centres, w, h, routes: points by edge index}.
function layered(items, edges) {
  const n = items.length, preds = [], succs = [];
  for (let i = 0; i < n; i++) { preds.push([]); succs.push([]); }
  edges.forEach(([a, b]) => {
    if (items[a].side || items[b].side) return; // where an edge comes in moves nothing
    succs[a].push(b);
    preds[b].push(a);
  });
  const rank = new Int32Array(n);
  for (let i = 0; i < n; i++) for (const p of preds[i]) rank[i] = Math.max(rank[i], rank[p] + 1);
  for (let i = n - 1; i >= 0; i--) { // what depends on nothing here stands just above its first use
    if (!preds[i].length && succs[i].length) rank[i] = Math.max(0, Math.min(...succs[i].map((s) => rank[s])) - 1);
  }
  if (items.some((item) => item.side < 0)) items.forEach((item, i) => { rank[i] = item.side < 0 ? 0 : rank[i] + 1; });
  const last = Math.max(-1, ...rank) + 1;
  items.forEach((item, i) => { if (item.side > 0) rank[i] = last; });
  const cells = items.map((item, i) => ({ w: item.w, h: item.h, rank: rank[i], up: [], down: [], x: 0, y: 0 }));
  const trunks = new Map(); // what leaves an item with the same colour goes down together, and branches off where it must
  const link = (above, below) => {
    if (above.down.includes(below)) return;
    above.down.push(below);
    below.up.push(above);
  };
  const chains = edges.map(([a, b, , colour]) => {
    const chain = [cells[a]], key = `${a} ${colour}`;
    if (rank[b] - rank[a] <= LONGEST) {
      if (!trunks.has(key)) trunks.set(key, []);
      const trunk = trunks.get(key);
      for (let r = rank[a] + 1; r < rank[b]; r++) {
        const i = r - rank[a] - 1;
        if (!trunk[i]) {
          trunk[i] = { w: 6, h: 0, rank: r, up: [], down: [], x: 0, y: 0 };
          cells.push(trunk[i]);
        }
        chain.push(trunk[i]);
      }
    }
    chain.push(cells[b]);
    for (let i = 1; i < chain.length; i++) link(chain[i - 1], chain[i]);
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
      cell.span = [y, y + tall];
      low = Math.min(low, cell.x - cell.w / 2);
      high = Math.max(high, cell.x + cell.w / 2);
    }
    y += tall + (tall ? GAP_Y : GAP_IN);
  }
  if (!cells.length) { low = 0; high = 40; y = GAP_Y + 10; }
  cells.forEach((cell) => { cell.x -= low; });
  return {
    w: high - low, h: y - GAP_Y,
    at: items.map((_, i) => [cells[i].x, cells[i].y]),
    // Straight down past what stands beside it in the same layer, which may be a tall box.
    routes: chains.map((chain) => chain.slice(1, -1).flatMap((cell) => cell.span.map((level) => [cell.x, level]))),
  };
}

// The whole picture. view: {nodes, boxes (Map), children (Map: box -> item ids in order), edges, isOpen(id)}
// Returns {nodes: Map id -> rect, boxes: Map id -> rect, edges: [{edge, points}]}, in one coordinate system.
function arrange(view) {
  const legs = view.edges.map((edge) => legsOf(edge, view)), perBox = new Map();
  legs.forEach((list, index) => list.forEach((leg) => {
    if (!perBox.has(leg.box)) perBox.set(leg.box, []);
    perBox.get(leg.box).push({ leg, index });
  }));
  const sizes = new Map(), inner = new Map();
  const measure = (box) => {
    const items = view.children(box).map((id) => {
      if (view.isBox(id) && view.isOpen(id)) measure(id);
      else sizes.set(id, nodeSize(view.item(id)));
      return { id, side: 0, ...sizes.get(id) };
    });
    const { all, edges } = withGates(items, (perBox.get(box) || []).map(({ leg }) => leg));
    const result = layered(all, edges);
    edges.forEach(([i, j, through], k) => through.forEach((leg) => {
      leg.points = [...(all[i].side ? [result.at[i]] : []), ...result.routes[k], ...(all[j].side ? [result.at[j]] : [])];
    }));
    inner.set(box, { items: all, at: result.at });
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
      if (item.side) return;
      const rect = { x: dx + at[i][0] - item.w / 2, y: dy + at[i][1] - item.h / 2, w: item.w, h: item.h };
      if (inner.has(item.id)) { boxes.set(item.id, rect); settle(item.id, rect.x, rect.y); } else nodes.set(item.id, rect);
    });
  };
  settle("", 0, 0);
  const edges = view.edges.map((edge, index) => {
    const a = nodes.get(edge.source), b = nodes.get(edge.target);
    const between = legs[index].flatMap((leg) => {
      const [dx, dy] = origin.get(leg.box);
      return (leg.points || []).map(([px, py]) => [px + dx, py + dy]);
    });
    const back = b.y < a.y + a.h;
    return { edge, points: [[a.x + a.w / 2, back ? a.y + a.h / 2 : a.y + a.h], ...between, [b.x + b.w / 2, b.y]] };
  });
  return { nodes, boxes, edges, w: sizes.get("").w, h: sizes.get("").h };
}

// The stretches of an edge, one in each box on its way: out of the boxes around its source, across the box that holds
// both ends, into those around its target. `from` null: it comes in at the top; `to` null: it leaves at the bottom.
function legsOf(edge, view) {
  const around = (id) => {
    const chain = [id];
    let box = view.parent(id);
    while (box !== "") { chain.push(box); box = view.parent(box); }
    chain.push("");
    return chain.reverse();
  };
  const a = around(edge.source), b = around(edge.target);
  let depth = 0;
  while (a[depth + 1] === b[depth + 1]) depth++;
  const leg = (box, from, to) => ({ box, from, to, source: edge.source, colour: String(edge.home) });
  const out = a.slice(depth + 1, -1).map((box, i) => leg(box, a[depth + 2 + i], null)).reverse();
  const into = b.slice(depth + 1, -1).map((box, i) => leg(box, null, b[depth + 2 + i]));
  return [...out, leg(a[depth], a[depth + 1], b[depth + 1]), ...into];
}

// The items of a box with a gate at its top for each call outside that it reads, and one at its bottom for each item
// that is read outside; and the edges between all of them: [i, j, legs, colour].
function withGates(items, legs) {
  const tops = new Map(), bottoms = new Map();
  for (const leg of legs) {
    if (leg.from === null) tops.set(leg.source, { side: -1, w: 4, h: 0 });
    if (leg.to === null) bottoms.set(leg.from, { side: 1, w: 4, h: 0 });
  }
  const all = [...tops.values(), ...items, ...bottoms.values()];
  const index = new Map(all.map((item, i) => [item.side ? item : item.id, i]));
  const edges = new Map();
  for (const leg of legs) {
    const i = index.get(leg.from === null ? tops.get(leg.source) : leg.from);
    const j = index.get(leg.to === null ? bottoms.get(leg.from) : leg.to);
    if (i >= j) continue;
    const key = `${i} ${j} ${leg.colour}`;
    if (!edges.has(key)) edges.set(key, [i, j, [], leg.colour]);
    edges.get(key)[2].push(leg);
  }
  return { all, edges: [...edges.values()] };
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
