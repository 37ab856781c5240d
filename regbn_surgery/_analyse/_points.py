"""From meetings to fusion points: one per owner and site, with kind, level, operands and the pairs RegBN could take."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import networkx as nx

from .._capture import Frame, Trace
from .._types import NEVER_BY_DEFAULT, FusionPoint, Kind, Layout, Level, Operand, Reduce, Side, Site
from ._anchors import Event, FrameView, Key, Take
from ._axes import SPLITS, concat_dim, split_dim
from ._families import CONCATS
from ._flow import Flow, Meeting, Met
from ._lineage import Home, comparable
from ._masks import find_mask
from ._scatter import Scatter, scatter_sides

_NO_LEVEL: frozenset[Kind] = frozenset({"similarity", "loss"})


@dataclass(frozen=True)
class Recipe:
    """How to put RegBN at a site, for the rewrite: which calls of the owner, what to take, what to replace.

    `leaf` is the path of the torch module whose arguments the two sides are (an `nn.MultiheadAttention`). `cycle` is
    the role of each call of the owner within one call of the module `caller`, where roles differ; else None. `mask`
    is the argument that masks the positions of side `mask_side`.
    """

    owner: str
    key: Key
    takes: tuple[Take, Take]
    leaf: str | None
    leaf_arguments: tuple[tuple[str, ...], tuple[str, ...]] | None
    role: int
    cycle: tuple[int, ...] | None
    caller: str
    mask: str | None
    mask_side: int
    repeats: bool  # the call stands in a loop: each of its rounds is this site
    whole_input: tuple[bool, bool]  # whether nothing else in the owner reads that argument
    mask_leaves_out: bool = False  # whether True in the mask marks what to leave out, not what to keep
    makers: tuple[str | None, str | None] = (None, None)  # the nearest layer that each side comes out of
    scatter: Scatter | None = None  # of a point of that kind: its calls, in other words


@dataclass(frozen=True)
class Run:
    """One analysed run: the trace in one mode, what flowed through it, and its layouts."""

    mode: str
    trace: Trace
    flow: Flow
    layout: Callable[[int], Layout]
    order: tuple[str, ...]  # modalities in input order


@dataclass(frozen=True)
class Found:
    point: FusionPoint
    recipes: tuple[Recipe, ...]


def find_points(runs: Sequence[Run]) -> list[Found]:
    """Merge the meetings of all runs into fusion points, in the order of the forward."""
    groups: dict[tuple[str, Key], list[tuple[Run, Meeting]]] = {}
    for run in runs:
        for meeting in run.flow.meetings:
            owner = _owner(run.trace, meeting)
            groups.setdefault((owner.path, meeting.op.key), []).append((run, meeting))
    names: dict[str, int] = {}
    found = []
    for (path, _), members in _rounds_merged(groups).items():
        label = _label(members[0][1])
        name = f"{path}.{label}" if path else label
        count = names[name] = names.get(name, -1) + 1
        found.append(_point(name if count == 0 else f"{name}_{count}", members))
    return found


_JOINING: frozenset[Kind] = frozenset({"concat", "sum", "product", "module"})

Members = list[tuple[Run, Meeting]]


def _rounds_merged(groups: dict[tuple[str, Key], Members]) -> dict[tuple[str, Key], Members]:
    """A call in a loop over time is one point: its rounds join outputs of the same layers in the same way.

    A loop over layers is not: each of its rounds has layers of its own.
    """
    merged: dict[tuple[str, Key], Members] = {}
    first: dict[tuple[object, ...], tuple[str, Key]] = {}
    for place, members in groups.items():
        run, meeting = members[0]
        if meeting.kind not in _JOINING or meeting.gate is not None or meeting.outer or meeting.more:
            merged[place] = members
            continue
        operands = tuple((met.home, met.info.shape, _layers_behind(run, met.info.uid)) for met in meeting.operands)
        offset = meeting.op.source.offset if meeting.op.source is not None else 0
        same = first.setdefault((place[0], place[1][:3], offset, meeting.level, operands), place)
        merged.setdefault(same, []).extend(members)
    return merged


def _layers_behind(run: Run, uid: int) -> frozenset[tuple[object, ...]]:
    """The nearest layers that a tensor comes out of, each with which part of its channels."""
    found: set[tuple[object, ...]] = set()
    seen: set[tuple[int, tuple[int, ...]]] = set()
    todo: list[tuple[int, tuple[int, ...]]] = [(uid, ())]
    while todo:
        uid, parts = todo.pop()
        if (uid, parts) in seen or uid not in run.flow.producers:
            continue
        seen.add((uid, parts))
        op = run.trace.ops[run.flow.producers[uid]]
        if op.module is not None:
            found.add((op.module, *parts))
            continue
        if op.name in SPLITS and not parts:
            before = op.inputs[0]
            if split_dim(op, len(run.trace.tensors[before].shape)) == run.layout(before).channel_dim:
                parts = (op.outputs.index(uid),)
        carrying = [i for i in op.inputs if i in run.flow.lineages and run.flow.lineages[i].touched]
        todo.extend((i, parts) for i in carrying if i != uid)
    return frozenset(found)


def _layer_behind(run: Run, uid: int) -> str | None:
    """Path of the nearest layer that a tensor comes out of, by the first operand; None for one no layer has touched."""
    seen: set[int] = set()
    while uid in run.flow.producers and uid not in seen:
        seen.add(uid)
        op = run.trace.ops[run.flow.producers[uid]]
        if uid in op.inputs:  # a cast that changed nothing, or a write in place: who made it before?
            op = next((o for o in run.trace.ops if uid in o.outputs and uid not in o.inputs), op)
        if op.module is not None:
            return op.module
        carrying = [i for i in op.inputs if i in run.flow.lineages and run.flow.lineages[i].touched]
        if not carrying:
            return None
        uid = carrying[0]
    return None


def _owner(trace: Trace, meeting: Meeting) -> Frame:
    frame = trace.frames[meeting.op.frame]
    while frame.path == "?" and frame.parent is not None:  # a module made in forward has no path of its own
        frame = trace.frames[frame.parent]
    return frame


def _label(meeting: Meeting) -> str:
    if meeting.kind in ("attention", "similarity"):
        return meeting.kind
    return {"__setitem__": "setitem", "__iadd__": "add", "__imul__": "mul"}.get(meeting.op.name, meeting.op.name).strip(
        "_"
    )


def _point(name: str, members: list[tuple[Run, Meeting]]) -> Found:
    run, meeting = members[0]
    owner = _owner(run.trace, meeting)
    sites: list[Site] = []
    recipes: list[Recipe] = []
    roles: dict[tuple[Home, ...], int] = {}
    for member_run, member in members:
        if member_run is run:
            roles.setdefault(_role(member), len(roles))
    repeats = len({m.op.key for _, m in members}) > 1
    cycle, caller = _cycle(run, owner, {m.op.frame: roles[_role(m)] for r, m in members if r is run})
    for role_homes, role in roles.items():
        member = next(m for r, m in members if r is run and _role(m) == role_homes)
        for site, recipe in _sites(run, member, role):
            sites.append(site)
            recipes.append(replace(recipe, cycle=cycle, caller=caller, repeats=repeats))
    level = _level(run, meeting, {m.op.index for r, m in members if r is run})
    point = FusionPoint(
        id=name,
        owner=owner.path,
        owner_class=owner.class_name,
        kind=meeting.kind,
        op=meeting.op.name,
        source=meeting.op.source,
        level=level,
        selected_by_default=meeting.kind not in NEVER_BY_DEFAULT and level != "remeeting",
        operands=tuple(_operand(run, met) for met in _all_operands(meeting)),
        sites=tuple(sites),
        group=f"{re.sub(r'[0-9]+', '*', owner.path)}:{owner.class_name}:{meeting.kind}",
        modes=tuple(dict.fromkeys(member_run.mode for member_run, _ in members)),
        note=meeting.note,
    )
    return Found(point, tuple(recipes))


def _role(meeting: Meeting) -> tuple[Home, ...]:
    return tuple(met.home for met in meeting.operands)


def _cycle(run: Run, owner: Frame, roles: dict[int, int]) -> tuple[tuple[int, ...] | None, str]:
    """The roles of the owner's calls in order within one call of their common caller, and the caller's path.

    None where every call has the same role, so that no counting is needed.
    """
    frames = run.trace.frames
    calls = [frame.index for frame in frames if frame.path == owner.path]
    if len({roles.get(index, -1) for index in calls}) == 1:
        return None, ""
    chains = []
    for index in calls:
        chain, parent = [], frames[index].parent
        while parent is not None:
            chain.append(parent)
            parent = frames[parent].parent
        chains.append(chain[::-1])
    common = [level[0] for level in zip(*chains, strict=False) if len(set(level)) == 1]
    return tuple(roles.get(index, -1) for index in calls), frames[common[-1]].path if common else ""


def _all_operands(meeting: Meeting) -> list[Met]:
    operands = list(meeting.operands)
    for _, more in meeting.more:
        operands.extend(
            met for met in more if met.lineage.axes is None and all(met.info.uid != m.info.uid for m in operands)
        )
    return operands


def _level(run: Run, meeting: Meeting, rounds: set[int]) -> Level:
    if meeting.level == "remeeting":
        return "remeeting"
    if not any(met.lineage.parametrised for met in meeting.operands):
        return "early"
    later = nx.descendants(run.flow.graph, meeting.op.index)
    own = rounds | {op.index for op, _ in meeting.more}
    place = (_owner(run.trace, meeting).path, meeting.op.key)
    for other in run.flow.meetings:
        another = other.op.index in later - own and (_owner(run.trace, other).path, other.op.key) != place
        if another and other.kind not in _NO_LEVEL:
            return "middle"
    return "late"


def _operand(run: Run, met: Met) -> Operand:
    return Operand(
        modalities=_ordered(run, met.lineage.touched),
        home=_ordered(run, met.home),
        producer=_producer(run, met.info.uid),
        shape=met.info.shape,
        dtype=str(met.info.dtype).removeprefix("torch."),
        layout=run.layout(met.info.uid),
    )


def _ordered(run: Run, names: Home) -> tuple[str, ...]:
    return tuple(name for name in run.order if name in names)


def _producer(run: Run, uid: int) -> str:
    index = run.flow.producers.get(uid)
    if index is None:
        name = next((name for name, input_uid in run.trace.inputs if input_uid == uid), None)
        return f"input `{name}`" if name is not None else "a constant"
    op = run.trace.ops[index]
    if op.module is not None:
        return f"{op.name} `{op.module}`"
    owner = run.trace.path_of(op)
    return f"{op.name} in `{owner}`" if owner else op.name


# -- sites ------------------------------------------------------------------------------------------------------------


def _sites(run: Run, meeting: Meeting, role: int) -> list[tuple[Site, Recipe]]:
    frame = run.trace.frames[meeting.op.frame]
    view = FrameView(frame, run.trace, run.flow, run.layout)
    event = view.event_of(meeting.op)
    if meeting.op.name in ("MultiheadAttention", "TransformerDecoderLayer", "TransformerDecoder", "Transformer"):
        pairs = _leaf_pairs(meeting)
    elif meeting.kind == "attention":
        pairs = _attention_pairs(meeting)
    else:
        pairs = _operand_pairs(meeting)
    return [_site(run, meeting, view, event, pair, role) for pair in pairs]


Pair = tuple[tuple[Met, ...], tuple[Met, ...]]


def _operand_pairs(meeting: Meeting) -> list[Pair]:
    """Every pair of operands that meet, in operand order; nested homes are a pair where a mixed stream re-enters."""
    operands = meeting.operands
    pairs: list[Pair] = [((a,), (b,)) for a, b in itertools.combinations(operands, 2) if not comparable(a.home, b.home)]
    return pairs or [((a,), (b,)) for a, b in itertools.combinations(operands, 2) if a.home != b.home or meeting.level]


def _attention_pairs(meeting: Meeting) -> list[Pair]:
    """The query, and the key and the values together."""
    query = meeting.operands[0]
    others = [met for met in _all_operands(meeting) if met is not query]
    same = [met for met in others if comparable(met.home, query.home)]
    other = [met for met in others if not comparable(met.home, query.home)]
    return [((query, *same), tuple(other))] if other else []


def _leaf_pairs(meeting: Meeting) -> list[Pair]:
    query = next((met for met in meeting.operands if met.position == 0), meeting.operands[0])
    other = tuple(met for met in meeting.operands if not comparable(met.home, query.home))
    return [((query,), other)] if other else []


def _scatter_site(run: Run, meeting: Meeting, view: FrameView, pair: Pair, role: int) -> tuple[Site, Recipe]:
    """The tensor written into and what is written; neither is an argument of the call that a reader could be given."""
    op, host = meeting.op, view.frame.path
    found = scatter_sides(op, tuple(side[0].position for side in pair), run.trace, run.layout)
    obstacle = found.obstacle
    sides, takes = [], []
    words = (f"what {op.name} writes into", f"what {op.name} writes")
    for (met, *_), (shape, layout), anchor in zip(pair, (found.into, found.source), words, strict=True):
        dtype = str(met.info.dtype).removeprefix("torch.")
        sides.append(Side(_ordered(run, met.home), shape, dtype, layout, anchor))
        if not layout.known:
            obstacle = obstacle or f"the layout of {anchor} is not known: {'; '.join(layout.evidence)}"
        at = (op.key, met.position)
        takes.append(Take(met.info.uid, at, (at,)))
    if host == "?":
        obstacle = "the owner is made inside forward, so that nothing could be put into it for good"
    scatter = found.scatter
    in_sequence = any(side.layout.sequence or scatter.axis in side.layout.spatial_dims for side in sides)
    reduce: Reduce = "mean" if not scatter.written or in_sequence else "flatten"
    site = Site(host, (sides[0], sides[1]), reduce, role, None, obstacle)
    recipe = Recipe(
        owner=host,
        key=op.key,
        takes=(takes[0], takes[1]),
        leaf=None,
        leaf_arguments=None,
        role=role,
        cycle=None,
        caller="",
        mask=None,
        mask_side=1,
        repeats=False,
        whole_input=(False, False),
        makers=(_layer_behind(run, takes[0].uid), _layer_behind(run, takes[1].uid)),
        scatter=scatter,
    )
    return site, recipe


def _site(run: Run, meeting: Meeting, view: FrameView, event: Event, pair: Pair, role: int) -> tuple[Site, Recipe]:
    if meeting.kind == "scatter":
        return _scatter_site(run, meeting, view, pair, role)
    leaf = meeting.op.module
    takes, gate, obstacle = [], None, None
    for i, side in enumerate(pair):
        take, reason = _take(meeting, view, event, side, leaf)
        takes.append(take)
        obstacle = obstacle or reason
        if not take.readers:
            gate = i
    sides = tuple(_side(run, view, take, event, side) for take, side in zip(takes, pair, strict=True))
    for found in sides:
        if not found.layout.known:
            obstacle = obstacle or f"the layout of {found.anchor} is not known: {'; '.join(found.layout.evidence)}"
    host = view.frame.path
    if host == "?":
        obstacle = "the owner is made inside forward, so that nothing could be put into it for good"
    site = Site(host, (sides[0], sides[1]), _reduce(meeting, sides), role, gate, obstacle)
    arguments = _leaf_arguments(meeting, pair) if leaf is not None else None
    whole = tuple(
        take.argument is not None
        and all((reader.key, position) in take.readers for reader, position in view.readers.get(take.uid, ()))
        for take in takes
    )
    mask = find_mask(meeting, view, sides)
    recipe = Recipe(
        owner=host,
        key=meeting.op.key,
        takes=(takes[0], takes[1]),
        leaf=leaf if arguments else None,
        leaf_arguments=arguments,
        role=role,
        cycle=None,
        caller="",
        mask=mask.name if mask is not None else None,
        mask_side=mask.side if mask is not None else 1,
        repeats=False,
        whole_input=(whole[0], whole[1]),
        makers=(_layer_behind(run, takes[0].uid), _layer_behind(run, takes[1].uid)),
        mask_leaves_out=mask is not None and mask.leaves_out,
    )
    return site, recipe


def _take(
    meeting: Meeting, view: FrameView, event: Event, side: tuple[Met, ...], leaf: str | None
) -> tuple[Take, str | None]:
    uids = tuple(met.info.uid for met in side)
    if meeting.kind == "attention" and leaf is None:
        stream = view.stream_before_projection(uids)
        if stream is None and len(set(uids)) > 1:
            # Keys and values come by ways of their own (a position code on the keys alone): fit on the keys, replace
            # neither, as for torch's own attention.
            keys = view.stream_before_projection(uids[:1])
            if keys is not None:
                return view.read_only(keys), None
        if stream is None:
            first = Take(uids[0], (event.key, side[0].position), (), None)
            return first, "no [B, L, C] stream before the attention's projections was found in its owner"
        return view.take(stream, uids, event), None
    if leaf is not None and len(set(uids)) > 1:
        # Key and value are different tensors (a position code on the keys alone): fit on the keys, replace neither.
        return view.read_only(uids[0]), None
    if meeting.gate is not None and side[0].position == meeting.gate:
        return view.read_only(view.before_squash(uids[0])), None
    if meeting.kind in ("matmul", "bilinear") and leaf is None:
        behind = view.argument_behind(uids[0])
        if behind is not None:
            return view.take(behind, uids, event), None
    if meeting.outer:
        return view.take(view.before_broadcast(uids[0]), uids, event), None
    if meeting.kind == "similarity":
        stream = view.before_normalisation(uids[0])
        readers = tuple((reader.key, position) for reader, position in view.readers[stream])
        return view.taken(stream, readers[0], readers), None
    readers = tuple((event.key, position) for position, uid in enumerate(event.inputs) if uid in uids)
    return view.taken(uids[0], readers[0], readers), None


def _leaf_arguments(meeting: Meeting, pair: Pair) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Names of the leaf module's arguments that each side is: what a pre-hook on the leaf replaces."""
    names = {
        "MultiheadAttention": ("query", "key", "value"),
        "TransformerDecoderLayer": ("tgt", "memory"),
        "TransformerDecoder": ("tgt", "memory"),
        "Transformer": ("src", "tgt"),
        "Bilinear": ("input1", "input2"),
    }.get(meeting.op.name)
    if names is None or any(met.position >= len(names) for side in pair for met in side):
        return None
    first, second = (tuple(names[met.position] for met in side) for side in pair)
    return first, second


def _side(run: Run, view: FrameView, take: Take, event: Event, side: tuple[Met, ...]) -> Side:
    info = run.trace.tensors[take.uid]
    # An operand written to in place has another lineage after the call than it had at it.
    met = next((met.lineage for met in side if met.info.uid == take.uid), None)
    home = (met or run.flow.lineages[take.uid]).home
    if take.argument is not None:
        anchor = f"argument `{take.argument}`"
    elif take.uid in event.inputs:
        anchor = f"operand {event.inputs.index(take.uid)} of {event.key[0]}"
    else:
        anchor = _producer(run, take.uid)
    return Side(
        home=_ordered(run, home),
        shape=info.shape,
        dtype=str(info.dtype).removeprefix("torch."),
        layout=run.layout(take.uid),
        anchor=anchor,
    )


def _reduce(meeting: Meeting, sides: Sequence[Side]) -> Reduce:
    """`mean` wherever tokens are met, whose number need not be the same in f and g or from batch to batch."""
    if meeting.kind == "attention" or any(side.layout.sequence for side in sides):
        return "mean"
    if meeting.op.name in CONCATS and meeting.op.name != "stack":
        dim = concat_dim(meeting.op, len(sides[0].shape))
        if any(side.layout.known and dim in side.layout.spatial_dims for side in sides):
            return "mean"
    return "flatten"
