"""Tier 2: the host's own forward as a graph, with RegBN put in, written out as Python again.

Only the host is captured, its children stay the calls they are. The generated function takes the host as `self`, so
it goes on reading the parameters, children and attributes that are there when it runs.
"""

from __future__ import annotations

import linecache
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import nn

from .._analyse._anchors import Take
from .._capture import Op, Trace
from .._errors import RewriteError


@dataclass(frozen=True)
class LocalSite:
    """One RegBN in a host's graph: where f and g are taken and who reads the results."""

    name: str  # of the RegBNSite among the host's children
    f: Take
    g: Take
    replace_g: bool
    role: int = 0
    point: str = ""


@dataclass(frozen=True)
class Variant:
    """The host's forward for one kind of call. `sites` ran in it; without any, the original forward serves."""

    before: str
    after: str
    function: Callable[..., Any]
    sites: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...]  # attributes of the host that must still have these values
    stores: bool  # whether the function returns `(output, {attribute: value})`


_serial = 0


def build_variant(host: nn.Module, trace: Trace, sites: tuple[LocalSite, ...]) -> Variant:
    """Put RegBN into the captured graph of the host and compile it. Changes the trace's graph.

    Raises:
        RewriteError: where f is used before g exists.
    """
    constants = _keep_constants(host, trace)
    before = _source(trace.graph)
    events = {op.key: op for op in trace.ops}
    done = [site.name for site in sites if _insert(trace, events, site)]
    trace.graph.lint()
    code = trace.graph.python_code("self")
    after = _readable(code.src)
    settings = tuple((name, value) for name, value in trace.settings.items() if name not in trace.stores)
    function = _compile(code.src, {**code.globals, **constants}, type(host).__name__)
    return Variant(before, after, function, tuple(done), settings, bool(trace.stores))


def _insert(trace: Trace, events: dict[tuple[str, str, int, int], Op], site: LocalSite) -> bool:
    """Insert one site; False where this kind of call does not come by it."""
    f, g = _anchor(events, site.f), _anchor(events, site.g)
    if f is None or g is None:
        return False
    graph = trace.graph
    order = {node: i for i, node in enumerate(graph.nodes)}
    after = max((f, g), key=order.__getitem__)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if after.op == "placeholder":
        after = placeholders[-1]
    readers = [(events[key], f) for key, _ in site.f.readers if key in events]
    g_readers = [(events[key], g) for key, _ in site.g.readers if key in events] if site.replace_g else []
    early = {op.node for op, _ in (*readers, *g_readers) if order[op.node] <= order[after]}
    late = _dependents(early, after, order)
    if late & {f, g}:
        raise RewriteError(
            f"RegBN {site.name!r} cannot go in: one side is computed from the other's readers in the same forward, so "
            "that neither can come first. Normalise the other direction, or another point."
        )
    _refuse_hazard(site.name, late, after, order)
    with graph.inserting_after(after):
        call = graph.create_node("call_module", site.name, (f, g), name=site.name)
    with graph.inserting_after(call):
        g_new = graph.create_node("call_function", operator.getitem, (call, 1), name=f"{site.name}_g")
        f_new = graph.create_node("call_function", operator.getitem, (call, 0), name=f"{site.name}_f")
    last = g_new  # inserted first, so it stands after f_new
    for node in sorted(late, key=order.__getitem__):  # what reads f too early waits for the site
        last.append(node)
        last = node
    for new, pairs in ((f_new, readers), (g_new, g_readers)):
        for op, old in pairs:
            op.node.replace_input_with(old, new)
    if not g_readers:
        graph.erase_node(g_new)
    return True


def _dependents(early: set[torch.fx.Node], after: torch.fx.Node, order: dict[torch.fx.Node, int]) -> set[torch.fx.Node]:
    """The early readers and everything computed from them up to `after`."""
    found, todo = set(early), list(early)
    while todo:
        for user in todo.pop().users:
            if user not in found and order.get(user, len(order)) <= order[after]:
                found.add(user)
                todo.append(user)
    return found


def _refuse_hazard(name: str, moved: set[torch.fx.Node], after: torch.fx.Node, order: dict[torch.fx.Node, int]) -> None:
    """Calls may only wait where nothing writes in place meanwhile."""
    if not moved:
        return
    start = min(order[node] for node in moved)
    for node, index in order.items():
        op = node.meta.get("op")
        if start <= index <= order[after] and op is not None and op.inplace:
            raise RewriteError(
                f"RegBN {name!r} cannot go in: calls would have to wait for the other side, but {op.source} writes in "
                "place between them. Compute both sides first, or normalise the other direction."
            )


def _anchor(events: dict[tuple[str, str, int, int], Op], take: Take) -> torch.fx.Node | None:
    key, position = take.at
    op = events.get(key)
    return op.input_nodes[position] if op is not None and position < len(op.input_nodes) else None


def _keep_constants(host: nn.Module, trace: Trace) -> dict[str, Any]:
    """Tensors the graph holds become buffers of the host, so that they move with it; other objects, globals."""
    renamed: dict[str, str] = {}
    for name, value in trace.constants.items():
        if not isinstance(value, torch.Tensor):
            object_name = f"regbn_const_{len(host.__dict__)}_{name.rsplit('_', 1)[1]}"
            host.__dict__[object_name] = value
            renamed[name] = object_name
            continue
        number = sum(buffer.startswith("regbn_const_") for buffer in host._buffers)
        renamed[name] = f"regbn_const_{number}"
        host.register_buffer(renamed[name], value, persistent=False)
    for node in trace.graph.nodes:
        if node.op == "get_attr" and node.target in renamed:
            node.target = renamed[node.target]
    return {}


def _source(graph: torch.fx.Graph) -> str:
    return _readable(graph.python_code("self").src)


def _readable(source: str) -> str:
    """The generated code without the statements that only free memory early."""
    lines = [re.sub(r";  .* = None$", "", line).rstrip() for line in source.strip().splitlines()]
    return "\n".join(line for line in lines if line.strip()) + "\n"


def _compile(source: str, names: dict[str, Any], label: str) -> Callable[..., Any]:
    """Compile generated code so that tracebacks and debuggers can show its lines."""
    global _serial
    _serial += 1
    filename = f"<regbn_surgery {label}.forward {_serial}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), names)
    function: Callable[..., Any] = names["forward"]
    return function
