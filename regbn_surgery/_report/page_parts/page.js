// The page: draws the arrangement as SVG, and answers mouse, keyboard and search. Text from the model only ever goes
// through textContent and attributes, never through markup.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const models = { before: new Model(data.before), after: data.after ? new Model(data.after) : null };
const state = {
  which: data.after ? "after" : "before", open: new Set(data.opened), all: false, selected: null,
  found: [], at: -1, x: 0, y: 0, k: 1,
};
let model = models[state.which], shown = null;
const drawn = new Map(); // id -> {g, rect} of each node and box that is drawn
let lines = []; // {g, rect} of each edge

function make(tag, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return element;
}

function html(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function stream(home) { // the class that gives an element the colour of its stream
  if (!home.length) return "none";
  return home.length > 1 ? "mixed" : `m${data.before.modalities.indexOf(home[0]) % data.colours}`;
}

function cut(text, width) {
  const most = Math.floor((width - 14) / 6.4);
  return text.length > most ? `${text.slice(0, Math.max(1, most - 1))}…` : text;
}

// -- drawing ----------------------------------------------------------------------------------------------------------

function drawNode(id, rect) {
  const isBox = !model.nodes.has(id), item = model.item(id);
  const kind = isBox ? `closed${item.repeats ? " repeats" : ""}` : item.kind;
  const extra = [
    isBox && model.marked.has(id) ? "marked" : "", item.point ? "point" : "",
    model.changed.has(id) ? "changed" : "",
  ].filter(Boolean).join(" ");
  const home = isBox ? model.homes.get(id) || [] : item.home;
  const g = make("g", {
    class: `node ${kind} ${extra} ${stream(home)}`, transform: `translate(${rect.x.toFixed(1)},${rect.y.toFixed(1)})`,
    role: "button", "aria-label": isBox ? `closed module ${item.title}` : `${item.kind} ${item.id}`,
  });
  g.dataset.id = id;
  if (isBox && item.repeats) g.append(make("rect", { class: "behind", x: 4, y: 4, width: rect.w, height: rect.h, rx: 6 }));
  const round = item.kind === "op" || item.kind === "view" ? rect.h / 2 : item.kind === "input" || item.kind === "output" ? 1 : 6;
  g.append(make("rect", { width: rect.w, height: rect.h, rx: round }));
  item.lines.forEach((line, i) => {
    const y = rect.h / 2 + 4 + (i - (item.lines.length - 1) / 2) * LINE_H;
    g.append(make("text", { x: rect.w / 2, y: y.toFixed(1), class: i ? "minor" : "major" }, cut(line, rect.w)));
  });
  return g;
}

function drawBox(id, rect) {
  const item = model.item(id);
  const g = make("g", {
    class: `box ${model.changed.has(id) ? "changed" : ""} ${model.marked.has(id) ? "marked" : ""}`,
    transform: `translate(${rect.x.toFixed(1)},${rect.y.toFixed(1)})`, role: "button", "aria-label": `open module ${item.title}`,
  });
  g.dataset.id = id;
  g.append(make("rect", { width: rect.w, height: rect.h, rx: 8 }));
  return g;
}

function draw() {
  shown = arrange(model.view(state.open, state.all));
  drawn.clear();
  lines = [];
  const boxes = document.createDocumentFragment(), edges = document.createDocumentFragment();
  const titles = document.createDocumentFragment(); // over the edges, which run through most of them
  const nodes = document.createDocumentFragment();
  for (const [id, rect] of shown.boxes) {
    const g = drawBox(id, rect); drawn.set(id, { g, rect }); boxes.append(g);
    const title = make("text", { x: rect.x + 10, y: rect.y + 17 }, cut(`▾ ${model.item(id).title}`, rect.w));
    titles.append(title);
    lines.push({ g: title, rect });
  }
  for (const { edge, points } of shown.edges) {
    const ends = [model.nodes.get(edge.source), model.nodes.get(edge.target)];
    const changed = ends.some((node) => node && node.kind === "regbn");
    const path = make("path", { class: `edge ${stream(edge.home)} ${changed ? "changed" : ""}`, d: curve(points) });
    path.append(make("title", {}, edge.tensors.slice(0, 6).map((t) => `${t.shape} ${t.dtype} ${t.roles}`.trim()).join("\n")));
    edges.append(path);
    lines.push({ g: path, rect: extent(points) });
  }
  for (const [id, rect] of shown.nodes) { const g = drawNode(id, rect); drawn.set(id, { g, rect }); nodes.append(g); }
  $("boxes").replaceChildren(boxes);
  $("edges").replaceChildren(edges);
  $("titles").replaceChildren(titles);
  $("nodes").replaceChildren(nodes);
  document.body.dataset.shown = String(shown.nodes.size);
  mark();
  move();
}

function extent(points) {
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]), x = Math.min(...xs), y = Math.min(...ys);
  return { x: x - 4, y: y - 4, w: Math.max(...xs) - x + 8, h: Math.max(...ys) - y + 8 };
}

function mark() {
  for (const old of document.querySelectorAll(".selected, .found, .current")) old.classList.remove("selected", "found", "current");
  for (const id of state.found) (drawn.get(visible(id)) || { g: null }).g?.classList.add("found");
  if (state.at >= 0) drawn.get(visible(state.found[state.at]))?.g.classList.add("current");
  if (state.selected !== null) drawn.get(visible(state.selected))?.g.classList.add("selected");
}

function visible(id) { // the item itself, or the closed box that hides it
  if (drawn.has(id)) return id;
  if (!model.has(id)) return null;
  for (const box of model.around(model.parent(id))) if (drawn.has(box)) return box;
  return null;
}

// -- moving about -----------------------------------------------------------------------------------------------------

let waiting = false;

function move() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    $("scene").setAttribute("transform", `translate(${state.x},${state.y}) scale(${state.k})`);
    $("stage").classList.toggle("far", state.k < 0.3);
    cull();
  });
}

// Of a large picture only what is on screen is kept in the document's layout.
function cull() {
  const all = [...drawn.values(), ...lines];
  const much = all.length > 600;
  if (!much && !cull.used) return;
  cull.used = much;
  const { width, height } = $("stage").getBoundingClientRect();
  const left = -state.x / state.k, top = -state.y / state.k, right = left + width / state.k, bottom = top + height / state.k;
  for (const { g, rect } of all) {
    const out = much && (rect.x > right || rect.x + rect.w < left || rect.y > bottom || rect.y + rect.h < top);
    const wanted = out ? "none" : "";
    if (g.style.display !== wanted) g.style.display = wanted;
  }
}

function fit() {
  const { width, height } = $("stage").getBoundingClientRect();
  state.k = Math.min(1.2, Math.max(0.03, Math.min((width - 30) / shown.w, (height - 30) / shown.h)));
  state.x = (width - shown.w * state.k) / 2;
  state.y = Math.max(10, (height - shown.h * state.k) / 2);
  move();
}

function zoom(factor, cx, cy) {
  const { width, height } = $("stage").getBoundingClientRect();
  const [px, py] = [cx ?? width / 2, cy ?? height / 2];
  const k = Math.min(4, Math.max(0.02, state.k * factor));
  state.x = px - (px - state.x) * (k / state.k);
  state.y = py - (py - state.y) * (k / state.k);
  state.k = k;
  move();
}

function centre(id, least = 0.7) {
  const place = drawn.get(visible(id));
  if (!place) return;
  const { width, height } = $("stage").getBoundingClientRect();
  state.k = Math.max(state.k, least);
  state.x = width / 2 - (place.rect.x + place.rect.w / 2) * state.k;
  state.y = height / 2 - (place.rect.y + Math.min(place.rect.h / 2, height / (3 * state.k))) * state.k;
  move();
}

// Redraw so that `id` stays under the eye.
function keeping(id, change) {
  const before = drawn.get(visible(id) ?? "");
  change();
  draw();
  const after = drawn.get(visible(id) ?? "");
  if (before && after) {
    state.x += (before.rect.x + before.rect.w / 2 - after.rect.x - after.rect.w / 2) * state.k;
    state.y += (before.rect.y - after.rect.y) * state.k;
    move();
  }
}

function toggle(id) {
  keeping(id, () => { if (state.open.has(id)) state.open.delete(id); else state.open.add(id); });
  if (state.selected === id) describe(id);
}

function reveal(id) {
  let opened = false;
  for (const box of model.around(model.parent(id))) if (box !== "" && !state.open.has(box)) { state.open.add(box); opened = true; }
  if (model.nodes.has(id) && !state.all && !model.lean.keep.has(id)) { state.all = true; $("all").checked = true; opened = true; }
  if (opened) draw();
}

// -- what is said about a thing ---------------------------------------------------------------------------------------

function row(list, term, value) {
  if (value === "" || value === undefined || value === null) return;
  list.append(html("dt", "", term), html("dd", "", value));
}

function tensors(list, term, facts) {
  for (const fact of facts.slice(0, 12)) {
    list.append(html("dt", "", term));
    const dd = html("dd", "", `${fact.shape}${fact.roles ? ` (${fact.roles})` : ""} ${fact.dtype}`);
    const home = html("span", `stream ${stream(fact.home)}`, fact.home.length ? `stream: ${fact.home.join("+")}` : "no modality");
    dd.append(home);
    if (fact.touched.length > fact.home.length) dd.append(html("span", "minor", `touched by ${fact.touched.join(", ")}`));
    list.append(dd);
  }
}

function links(panel, title, ids, textOf = nameOf) {
  if (!ids.length) return;
  panel.append(html("h3", "", title));
  const list = html("ul");
  for (const id of [...new Set(ids)].slice(0, 20)) {
    const button = html("button", "link", textOf(id));
    button.addEventListener("click", () => choose(id, true));
    const entry = html("li");
    entry.append(button);
    list.append(entry);
  }
  panel.append(list);
}

function nameOf(id) {
  const item = model.item(id);
  return (item && item.point) || id;
}

/** A link for each fusion point, to its first call; attention meets in two calls, a loop in many. */
function pointLinks(panel) {
  const calls = {};
  for (const node of model.graph.nodes) if (node.point) (calls[node.point] ||= []).push(node.id);
  const points = Object.keys(calls), title = `${points.length} fusion point${points.length === 1 ? "" : "s"}`;
  const times = (point) => calls[point].length > 1 ? ` (${calls[point].length} calls)` : "";
  links(panel, title, points.map((point) => calls[point][0]),
    (id) => nameOf(id) + times(nameOf(id)));
}

function describe(id) {
  const panel = $("details");
  panel.replaceChildren();
  if (id === null || !model.has(id)) { summary(panel); return; }
  const isBox = !model.nodes.has(id), item = model.item(id);
  panel.append(html("h2", "", isBox ? item.title : item.kind === "regbn" ? `RegBN ${item.label}` : item.label));
  const list = html("dl");
  row(list, "id", id);
  if (isBox) {
    row(list, "class", item.class);
    row(list, "calls", String(model.count.get(id) || 0));
    const button = html("button", "", state.open.has(id) ? "Collapse" : "Expand");
    button.addEventListener("click", () => toggle(id));
    panel.append(list, button);
  } else {
    row(list, "kind", item.kind);
    tensors(list, "gives", item.outputs);
    for (const [term, value] of item.details) row(list, term, value);
    row(list, "source", item.source);
    panel.append(list);
    if (item.point && model.graph.points[item.point]) describePoint(panel, item.point, model.graph.points[item.point]);
    links(panel, "from", (model.into.get(id) || []).map((edge) => edge.source));
    links(panel, "to", (model.outOf.get(id) || []).map((edge) => edge.target));
  }
  const path = isBox ? item.path : model.boxes.get(item.box).path;
  for (const host of data.hosts) if (host.host === path && (isBox || item.kind === "regbn")) describeHost(panel, host);
}

function describePoint(panel, id, point) {
  panel.append(html("h3", "", `fusion point ${id}`));
  const list = html("dl");
  row(list, "kind", `${point.kind}, ${point.level}`);
  for (const operand of point.operands) row(list, "meets", operand);
  for (const cost of point.costs) row(list, "RegBN", cost);
  row(list, "selected", point.selected_by_default ? "by default" : "only if a rule names it");
  row(list, "note", point.note);
  panel.append(list);
}

function describeHost(panel, host) {
  panel.append(html("h3", "", `what the surgery did to ${host.host || "the model"} (by ${host.way})`));
  for (const why of host.why) panel.append(html("p", "", `Why ${why}.`));
  if (!host.diff) return;
  const pre = html("pre");
  for (const line of host.diff.split("\n")) {
    const kind = /^(\+\+\+|---|@)/.test(line) ? "at" : { "+": "add", "-": "cut" }[line[0]] || "";
    pre.append(html("span", kind, `${line}\n`));
  }
  panel.append(pre);
}

function summary(panel) {
  const graph = model.graph;
  panel.append(html("h2", "", graph.title));
  panel.append(html("p", "", `${graph.nodes.length} calls, ${graph.boxes.length - 1} modules. Click anything; press ? for the keys.`));
  const key = html("ul", "key");
  graph.modalities.forEach((name, i) => key.append(html("li", `m${i % data.colours}`, name)));
  if (graph.modalities.length > 1) key.append(html("li", "mixed", "several modalities"));
  panel.append(key);
  pointLinks(panel);
  links(panel, "RegBN modules", graph.nodes.filter((node) => node.kind === "regbn").map((node) => node.id));
}

function choose(id, bring) {
  state.selected = id;
  if (bring && id !== null) { reveal(id); centre(id); }
  mark();
  describe(id);
  $("said").textContent = id === null ? "" : `selected ${id}`;
}

// -- search -----------------------------------------------------------------------------------------------------------

function search(text) {
  const wanted = text.trim().toLowerCase();
  const hit = (...parts) => parts.some((part) => part && part.toLowerCase().includes(wanted));
  state.found = wanted === "" ? [] : [
    ...model.graph.nodes.filter((n) => hit(n.id, n.label, n.point, n.kind === "regbn" ? "regbn" : "")).map((n) => n.id),
    ...model.graph.boxes.filter((b) => b.id !== "" && hit(b.id, b.class)).map((b) => b.id),
  ];
  state.at = -1;
  told();
  mark();
}

function told() {
  const n = state.found.length;
  $("count").textContent = $("search").value.trim() === "" ? "" : state.at < 0 ? `${n} found` : `${state.at + 1} of ${n}`;
}

function next(step) {
  if (!state.found.length) return;
  state.at = (state.at + step + state.found.length) % state.found.length;
  choose(state.found[state.at], true);
  told();
}

// -- controls ---------------------------------------------------------------------------------------------------------

function show(which) {
  if (!models[which] || which === state.which) return;
  const anchor = state.selected !== null && models[which].has(state.selected) ? state.selected : null;
  const swap = () => { state.which = which; model = models[which]; };
  document.body.dataset.which = which;
  if (anchor === null) { swap(); draw(); } else keeping(anchor, swap);
  for (const button of document.querySelectorAll("[data-show]")) button.setAttribute("aria-pressed", String(button.dataset.show === which));
  if (state.selected !== null && !model.has(state.selected)) state.selected = null;
  search($("search").value);
  describe(state.selected);
}

function openAll(everything) {
  const mine = new Set(model.boxes.keys());
  if (everything) for (const id of mine) state.open.add(id); else state.open.clear();
  draw();
  fit();
}

function theme() {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
}

function step(key) { // along the edges from what is selected
  const from = drawn.get(visible(state.selected))?.rect;
  if (!from) return false;
  const here = visible(state.selected), near = [];
  for (const { edge } of shown.edges) {
    if (key === "ArrowDown" && edge.source === here) near.push(edge.target);
    if (key === "ArrowUp" && edge.target === here) near.push(edge.source);
  }
  if (key === "ArrowLeft" || key === "ArrowRight") {
    const way = key === "ArrowLeft" ? -1 : 1;
    for (const [id, rect] of shown.nodes) if (Math.abs(rect.y - from.y) < 60 && (rect.x - from.x) * way > 1) near.push(id);
  }
  const distance = (id) => { const r = drawn.get(id).rect; return Math.hypot(r.x - from.x, r.y - from.y); };
  near.sort((a, b) => distance(a) - distance(b));
  if (near.length) choose(near[0], true);
  return true;
}

const KEYS = {
  "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: fit, f: fit, t: theme,
  e: () => openAll(true), c: () => openAll(false), v: () => $("all").click(), "?": () => $("help").showModal(),
  b: () => show(state.which === "before" ? "after" : "before"),
  "/": () => { $("search").focus(); $("search").select(); }, n: () => next(1), N: () => next(-1),
  Escape: () => choose(null), " ": () => activate(), Enter: () => activate(),
};

function activate() {
  const id = state.selected;
  if (id === null) { choose(shown.nodes.keys().next().value ?? null, true); return; }
  if (model.boxes.has(id)) toggle(id);
  else if (model.nodes.get(id).box !== "") toggle(model.nodes.get(id).box);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const inside = event.target.closest("input, select, textarea"), button = event.target.closest("button, a, summary");
  if (inside) {
    if (event.key === "Escape") { $("search").value = ""; search(""); $("stage").focus(); }
    if (event.key === "Enter") { event.preventDefault(); next(event.shiftKey ? -1 : 1); }
    return;
  }
  if (button && (event.key === "Enter" || event.key === " ")) return;
  if (event.key.startsWith("Arrow")) {
    event.preventDefault();
    if (state.selected !== null && !event.shiftKey && step(event.key)) return;
    state.x += { ArrowLeft: 60, ArrowRight: -60 }[event.key] || 0;
    state.y += { ArrowUp: 60, ArrowDown: -60 }[event.key] || 0;
    move();
    return;
  }
  const act = KEYS[event.key];
  if (act) { event.preventDefault(); act(); }
});

const stage = $("stage");
let drag = null;

stage.addEventListener("pointerdown", (event) => {
  drag = { x: event.clientX, y: event.clientY, sx: state.x, sy: state.y, moved: false, target: event.target };
  stage.setPointerCapture(event.pointerId);
});
stage.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
  if (Math.hypot(dx, dy) > 4) drag.moved = true;
  if (drag.moved) { state.x = drag.sx + dx; state.y = drag.sy + dy; move(); }
});
stage.addEventListener("pointerup", () => {
  if (drag && !drag.moved) {
    const g = drag.target.closest("g[data-id]");
    choose(g ? g.dataset.id : null);
  }
  drag = null;
});
stage.addEventListener("pointercancel", () => { drag = null; });
stage.addEventListener("dblclick", (event) => {
  const g = event.target.closest("g[data-id]");
  const id = g ? g.dataset.id : state.selected;
  if (id !== null && model.boxes.has(id)) toggle(id);
});
stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  const { left, top } = stage.getBoundingClientRect();
  if (event.shiftKey) { state.x -= event.deltaY; move(); return; }
  zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX - left, event.clientY - top);
}, { passive: false });

$("search").addEventListener("input", (event) => search(event.target.value));
$("all").addEventListener("change", (event) => { state.all = event.target.checked; draw(); fit(); });
$("next").addEventListener("click", () => next(1));
$("zoomin").addEventListener("click", () => zoom(1.25));
$("zoomout").addEventListener("click", () => zoom(0.8));
$("fit").addEventListener("click", fit);
$("expand").addEventListener("click", () => openAll(true));
$("collapse").addEventListener("click", () => openAll(false));
$("theme").addEventListener("click", theme);
$("keys").addEventListener("click", () => $("help").showModal());
for (const button of document.querySelectorAll("[data-show]")) {
  button.hidden = !models.after;
  button.setAttribute("aria-pressed", String(button.dataset.show === state.which));
  button.addEventListener("click", () => show(button.dataset.show));
}
window.addEventListener("resize", move);

document.body.dataset.which = state.which;
document.title = `${data.before.title} · RegBN surgery`;
$("title").textContent = data.before.title;
draw();
describe(null);
fit();
const firstPoint = model.graph.nodes.find((node) => node.kind === "regbn") || model.graph.nodes.find((node) => node.point);
if (firstPoint && state.k < 0.45) centre(firstPoint.id, 0.6); // a picture too tall to read begins where it matters
document.body.dataset.ready = "yes";
