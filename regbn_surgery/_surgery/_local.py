"""The forward of a host whose calls change their order: as a graph, with RegBN put in, written out as Python again.

Only the host is captured, its children stay the calls they are. The generated function takes the host as `self`, so
it goes on reading the parameters, children and attributes that are there when it runs.
"""

from __future__ import annotations

import dataclasses
import functools
import linecache
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.fx
from torch import nn

from .._analysis import Take
from .._analysis._across import Across
from .._analysis._rounds import Rounds
from .._analysis._scatter import Scatter
from .._errors import RewriteError
from .._trace import Call, Trace, tensor_of
from .._trace._keywords import without_keywords
from ._opened import nodes_of, readers_of
from ._record import MASK_POSITIONS, MaskArgument, with_masks
from ._reorder import dependents, place, refuse_cycle, refuse_hazard
from ._scatter import insert_scatter
from ._site import site_at

Key = tuple[str, str, int, int]


@dataclass(frozen=True)
class LocalSite:
    """One RegBN in a host's graph: where f and g are taken and who reads the results."""

    name: str  # of the RegBNSite among the host's children
    f: Take
    g: Take
    replace_g: bool
    role: int = 0
    point: str = ""
    repeats: bool = False  # the call stands in a loop: every round of it is this site
    scatter: Scatter | None = None
    into_is_f: bool = True  # of a scatter: whether the tensor written into is f
    makers: tuple[str | None, str | None] = (None, None)  # of the host's layers, those that f and g come out of
    methods: tuple[str, ...] = ()  # beside `forward`, in which the two meet as well

    masks: tuple[MaskArgument, ...] = ()

    across: Across | None = None
    rounds: Rounds | None = None  # how the rounds of a loop follow one another; None: each call of that line is one
    words: tuple[str, str] = ("f", "g")  # where f and g are, for people

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(with_masks(state))

    @property
    def point_call(self) -> str:
        """Name of the function at whose call the two meet."""
        return self.f.at[0][0]

    def matches(self, wanted: Key, found: Key) -> bool:
        """Whether a call of the host is one that the site names, in one round or another."""
        return self.round_of(wanted, found) is not None

    def round_of(self, wanted: Key, found: Key) -> int | None:
        """In which round of the loop, from 0, a call of the host is the one that the site names; None where in none."""
        if self.repeats and self.rounds is not None:
            return self.rounds.round_of(wanted, found)
        if self.repeats and wanted[:3] == found[:3]:
            return found[3]
        return 0 if wanted == found else None

    def made_in_loop(self, take: Take) -> bool:
        """Whether each round makes this side anew."""
        return take.made is not None and self.rounds is not None and self.rounds.step(take.made[0][:3]) > 0


@dataclass(frozen=True)
class Variant:
    """The host's forward for one kind of call. `sites` ran in it; without any, the original forward serves."""

    before: str
    after: str
    function: Callable[..., Any]
    sites: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...]  # attributes of the host that must still have these values
    held: tuple[int, ...]  # identities of the objects from outside the module that it uses
    leaks: bool  # whether it may hold for the sizes of the captured call only
    stores: bool  # whether the function returns `(output, {attribute: value})`
    tokens: tuple[str, ...] = ()  # by which caches know `sites`
    reordered: bool = False  # whether calls have to wait for a RegBN, so that random numbers are drawn in another order

    def same_as(self, other: Variant) -> bool:
        return (self.after, self.settings, self.held) == (other.after, other.settings, other.held)


_serial = 0


def build_variant(host: nn.Module, trace: Trace, sites: tuple[LocalSite, ...]) -> Variant:
    """Put RegBN into the captured graph of the host and compile it. Changes the trace's graph.

    Raises:
        RewriteError: where f is used before g exists.
    """
    before = _source(trace.graph)
    events = {op.key: op for op in reversed(trace.calls)} | {op.key: op for op in trace.calls if op.frame == 0}
    current: Current = {}
    done, waiting = [], False
    places = {site.name: _places(trace, site) for site in sites if site.across is not None}
    for site in sites:
        if site.across is not None:
            inserted = [_insert_across(host, trace, site, places[site.name], current)]
        else:
            inserted = [_insert(host, trace, events, turn, current) for turn in _rounds(site, events)]
        if any(late is not None for late in inserted):
            done.append(site.name)
        waiting = waiting or any(inserted)
    trace.graph.lint()
    code = trace.graph.python_code("self")
    after = _readable(code.src)
    settings = tuple((name, value) for name, value in trace.settings.items() if name not in trace.stores)
    # What the forward uses from outside the module stays what it is, a global name of the generated code.
    source = re.sub(r"\bself\.(regbn_const_\w+)", r"_held_\1", code.src)
    identities = tuple(id(value) for value in trace.constants.values())
    held = {f"_held_{name}": value for name, value in trace.constants.items()}
    function = _compile(source, {**code.globals, **held}, type(host).__name__)
    return Variant(
        before,
        after,
        function,
        tuple(done),
        settings,
        identities,
        trace.leaks,
        bool(trace.stores),
        tuple(site_at(host, name).token for name in done),
        waiting,
    )


#: What a reader reads instead of a tensor, where an earlier site has been there: (tensor, reader) -> its result.
Current = dict[tuple[torch.fx.Node, torch.fx.Node], torch.fx.Node]


def _rounds(site: LocalSite, events: dict[Key, Call]) -> list[LocalSite]:
    """The site itself, or where it stands in a loop, one for each round that this call went."""
    if not site.repeats:
        return [site]

    def at(take: Take, place: Callable[[Key], Key]) -> Take:
        readers = tuple((place(key), position) for key, position in take.readers)
        return dataclasses.replace(take, at=(place(take.at[0]), take.at[1]), readers=readers)

    def turn(place: Callable[[Key], Key]) -> LocalSite:
        return dataclasses.replace(site, f=at(site.f, place), g=at(site.g, place), repeats=False)

    rounds = site.rounds
    if rounds is None:
        keys = sorted(key for key in events if site.matches(site.f.at[0], key))
        return [turn(lambda _, key=key: key) for key in keys]  # type: ignore[misc]
    numbers = sorted({n for key in events if (n := rounds.round_of(rounds.key, key)) is not None})
    turns = [turn(functools.partial(_shifted, rounds, n)) for n in numbers]
    if not rounds.once or not turns:
        return turns
    f, g = (
        dataclasses.replace(takes[0], readers=tuple(dict.fromkeys(reader for take in takes for reader in take.readers)))
        for takes in ([turn.f for turn in turns], [turn.g for turn in turns])
    )
    return [dataclasses.replace(turns[0], f=f, g=g)]


def _shifted(rounds: Rounds, times: int, key: Key) -> Key:
    return rounds.shifted(key, times)


def _insert(
    host: nn.Module, trace: Trace, events: dict[Key, Call], site: LocalSite, current: Current
) -> frozenset[torch.fx.Node] | None:
    """Insert one site, and say which calls have to wait for it; None where this kind of call does not come by it."""
    if site.scatter is not None:
        return frozenset() if _insert_scatter(trace, events, site, site.scatter) else None
    f_first, g_first = _anchor(events, site.f), _anchor(events, site.g)
    if f_first is None or g_first is None:
        return None
    readers = [events[key].node for key, _ in site.f.readers if key in events]
    g_readers = [events[key].node for key, _ in site.g.readers if key in events] if site.replace_g else []
    return _put_between(host, trace, site, (f_first, g_first), (readers, g_readers), current, events)


def _insert_across(
    host: nn.Module, trace: Trace, site: LocalSite, places: Places | None, current: Current
) -> frozenset[torch.fx.Node] | None:
    if places is None:
        return None
    sides, readers, g_readers = places
    return _put_between(host, trace, site, sides, (readers, g_readers if site.replace_g else []), current, {})


#: The nodes of f and g, and who reads them before any site is in.
Places = tuple[tuple[torch.fx.Node, torch.fx.Node], list[torch.fx.Node], list[torch.fx.Node]]


def _places(trace: Trace, site: LocalSite) -> Places | None:
    sides = nodes_of(trace, site.across) if site.across is not None else None
    return None if sides is None else (sides, readers_of(sides[0]), readers_of(sides[1]))


def _put_between(
    host: nn.Module,
    trace: Trace,
    site: LocalSite,
    sides: tuple[torch.fx.Node, torch.fx.Node],
    both_readers: tuple[list[torch.fx.Node], list[torch.fx.Node]],
    current: Current,
    events: dict[Key, Call],
) -> frozenset[torch.fx.Node]:
    """Put RegBN behind both sides and let the readers read its results; the calls that had to wait for it."""
    graph = trace.graph
    order = {node: i for i, node in enumerate(graph.nodes)}
    (f_first, g_first), (readers, g_readers) = sides, both_readers
    reading = {*readers, *g_readers}
    # Several pairs at one call go in sequence, each seeing the earlier results.
    f, g = (
        next((current[old, node] for node in (*mine, *readers) if (old, node) in current), old)
        for old, mine in ((f_first, readers), (g_first, g_readers))
    )
    after = place(graph, order, (f, g), reading)
    early = {node for node in reading if order[node] <= order[after]}
    late = dependents(early, after, order)
    refuse_cycle(site.name, site.words, late, (f, g))
    refuse_hazard(host, trace, site.name, late, after, order)
    with graph.inserting_after(after):
        masks = tuple(
            node if node is not None and order.get(node, len(order)) <= order[after] else None
            for node in _masks(trace, events, site)
        )
        given: dict[str, Any] = {"mask": masks} if any(masks) else {}
        call = graph.create_node("call_module", site.name, (f, g), given, name=site.name)
    with graph.inserting_after(call):
        g_new = graph.create_node("call_function", operator.getitem, (call, 1), name=f"{site.name}_g")
        f_new = graph.create_node("call_function", operator.getitem, (call, 0), name=f"{site.name}_f")
    last = g_new  # inserted first, so it stands after f_new
    for node in sorted(late, key=order.__getitem__):  # what reads f too early waits for the site
        last.append(node)
        last = node
    for old, now, new, nodes in ((f_first, f, f_new, readers), (g_first, g, g_new, g_readers)):
        for node in nodes:
            node.replace_input_with(current.get((old, node), now), new)
            current[old, node] = new
    if not g_readers:
        graph.erase_node(g_new)
    return frozenset(late)


def _masks(trace: Trace, events: dict[Key, Call], site: LocalSite) -> list[torch.fx.Node | None]:
    """The nodes of the masks over a site's sides, each None where this call has none."""
    attending = events.get(site.f.at[0])
    uids = []
    for mask in site.masks:
        uid = None if mask.layer else dict(trace.inputs).get(mask.argument)
        if uid is None and attending is not None and attending.module is not None:
            position = MASK_POSITIONS.get(mask.argument, len(attending.args))
            beside = attending.args[position] if position < len(attending.args) else None
            known = tensor_of(attending.kwargs.get(mask.argument, beside))
            uid = None if known is None else known.uid
        uids.append(uid)
    nodes = {info.uid: node for node in reversed(trace.graph.nodes) if (info := tensor_of(node)) is not None}
    return [None if uid is None else nodes.get(uid) for uid in uids]


def _insert_scatter(trace: Trace, events: dict[Key, Call], site: LocalSite, scatter: Scatter) -> bool:
    op = events.get(site.f.at[0])
    if op is None or any(key not in events for key in scatter.written):
        return False
    into, source = op.input_nodes[scatter.into], op.input_nodes[scatter.source]
    if into is None or source is None:
        raise RewriteError(
            f"RegBN {site.name!r} cannot be inserted: {op.source} writes a tensor that no call has produced"
        )
    earlier = tuple(events[key].node for key in scatter.written)
    masks = tuple(_masks(trace, events, site))
    sides = (into, source)
    insert_scatter(trace.graph, op.node, sides, scatter, site.name, site.into_is_f, site.replace_g, earlier, masks)
    return True


def _anchor(events: dict[Key, Call], take: Take) -> torch.fx.Node | None:
    key, position = take.at
    op = events.get(key)
    return op.input_nodes[position] if op is not None and position < len(op.input_nodes) else None


def _source(graph: torch.fx.Graph) -> str:
    return _readable(graph.python_code("self").src)


def _readable(source: str) -> str:
    """The generated code without the statements that only free memory early."""
    source = without_keywords(source)
    lines = [re.sub(r";  .* = None$", "", line).rstrip() for line in source.strip().splitlines()]
    return "\n".join(line for line in lines if line.strip()) + "\n"


def _compile(source: str, names: dict[str, Any], label: str) -> Callable[..., Any]:
    """Compile generated code so that tracebacks and debuggers can show its lines."""
    global _serial
    source = without_keywords(source)
    _serial += 1
    filename = f"<regbn_surgery {label}.forward {_serial}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), names)
    function: Callable[..., Any] = names["forward"]
    return function
