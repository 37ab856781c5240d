"""Where at a fusion point RegBN can go: the pairs of tensors, how they lie, and the recipe by which each is taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .._types import Reduce, Side, Site
from ._across import Across
from ._anchors import Event, Frames, FrameView, Key, Spot, Take
from ._axes import concat_dim
from ._flow import Meeting, Met
from ._lineage import comparable
from ._masks import NOT_ASKED, Masking, asked_of, masking_of, masking_of_scatter
from ._ranges import why_bounded
from ._rounds import Rounds
from ._runs import Run, layer_behind, ordered, producer
from ._scatter import Scatter, scatter_sides


@dataclass(frozen=True)
class Recipe:
    """How to put RegBN at a site, for the rewrite: which calls of the owner, what to take, what to replace.

    `elsewhere` gives the same site as the other runs have it (in training), where another call may make a side.

    `leaf` is the path of the torch module whose arguments the two sides are (an `nn.MultiheadAttention`). `cycle` is
    the role of each call of the owner within one call of the module `caller`, where roles differ; else None. `ways` are
    the functions that lead from the caller to each of these calls in any run, innermost first, with its role.
    """

    owner: str
    key: Key
    takes: tuple[Take, Take]
    leaf: str | None = None
    leaf_arguments: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    role: int = 0
    cycle: tuple[int, ...] | None = None
    caller: str = ""
    masking: Masking = NOT_ASKED  # masks over the positions of the two sides
    repeats: bool = False  # the call stands in a loop: each of its rounds is this site
    whole_input: tuple[bool, bool] = (False, False)  # whether nothing else in the owner reads that argument
    makers: tuple[str | None, str | None] = (None, None)  # the nearest layer that each side comes out of
    scatter: Scatter | None = None  # of a point of that kind: its calls, in other words
    rounds: Rounds | None = None  # how these follow one another; None: each call of that line is one
    across: Across | None = None  # of a pair whose two places are called by different modules
    spots: Mapping[Key, Spot] = field(default_factory=dict, compare=False, repr=False)
    layers: tuple[Key | None, Key | None] = (None, None)  # the owner's calls of the makers
    given: tuple[tuple[Key, str], tuple[Key, str]] | None = None  # of one layer for both: its calls, and what they get
    onward: tuple[Key, ...] = ()  # the owner's calls that read what comes out of the fusion call
    outer: Recipe | None = None  # the same in the owner's caller, where order does not matter: see `from_caller`
    named: bool = False  # of an outer one: whether the names of the owner's arguments say which side is which, too
    elsewhere: Callable[[], tuple[Recipe, ...]] | None = field(default=None, compare=False, repr=False)
    ways: tuple[tuple[Frames, int], ...] = field(default=(), compare=False, repr=False)
    waits: bool = False  # whether a call reads one side before the other exists, and would have to wait


def view_of(run: Run, meeting: Meeting) -> FrameView:
    """The call of the owner in which the streams meet."""
    return FrameView(run.trace.frames[meeting.op.frame], run.trace, run.flow, run.layout)


def find_sites(run: Run, meeting: Meeting, role: int, view: FrameView | None = None) -> list[tuple[Site, Recipe]]:
    """The sites of a meeting. `view` is the owner's call, where the caller has it at hand."""
    view = view or view_of(run, meeting)
    event = view.event_of(meeting.op)
    if meeting.kind == "attention" and meeting.op.row.arguments:
        pairs = _leaf_pairs(meeting)
    elif meeting.kind == "attention":
        pairs = _attention_pairs(meeting)
    else:
        pairs = _operand_pairs(meeting)
    found = []
    for pair in pairs:
        heads = _around_heads(run, meeting, view, event, pair)
        host, call, takes = heads or (view, event, None)
        site, recipe = _site(run, meeting, host, call, pair, role, takes)
        recipe = placed(host, recipe, call)
        found.append((site, replace(recipe, outer=from_caller(run, host, recipe))))
    return found


def _is_item(take: Take) -> bool:
    """Whether a side is an item of a list among the owner's arguments."""
    return take.argument is not None and any(part.isdigit() for part in take.argument.split("."))


def from_caller(run: Run, view: FrameView, recipe: Recipe) -> Recipe | None:
    """For sides that the owner is given: the site in the module that calls the owner.

    There the sides are known by what makes them; in the owner, a list in another order looks alike, and so do arguments
    in exchanged places. None where the owner is called from several places, or another thing than the two counts.
    """
    others = [frame for frame in run.trace.frames if frame.path == view.frame.path and frame is not view.frame]
    whole = all(recipe.whole_input)
    given = all(take.argument is not None for take in recipe.takes)
    if not given or not whole or others or view.frame.parent is None:
        return None
    caller = run.trace.frames[view.frame.parent]
    around = FrameView(caller, run.trace, run.flow, run.layout)
    event = next(event for event in around.events if event.key == view.frame.key)
    if any(take.uid not in event.inputs for take in recipe.takes) or caller.path == "?":
        return None
    readers = [((event.key, event.inputs.index(take.uid)),) for take in recipe.takes]
    takes = [around.taken(take.uid, at[0], at) for take, at in zip(recipe.takes, readers, strict=True)]
    if any(map(_is_item, takes)):
        return None
    named = not all(map(_is_item, recipe.takes))
    moved = replace(recipe, owner=caller.path, key=event.key, takes=(takes[0], takes[1]), leaf=None, named=named)
    moved = replace(moved, masking=asked_of(around))
    return replace(placed(around, moved, event), onward=())


def placed(view: FrameView, recipe: Recipe, event: Event | None) -> Recipe:
    """The recipe with where its calls stand. `event` is the fusion call, where there is one."""
    layers = tuple(view.layer_of(path, take) for path, take in zip(recipe.makers, recipe.takes, strict=True))
    onward: tuple[Key, ...] = ()
    if event is not None and event.outputs:
        later = (reader.key for reader, _ in view.readers.get(event.outputs[0], ()) if reader.order > event.order)
        onward = tuple(dict.fromkeys(later))
    written = recipe.scatter.written if recipe.scatter is not None else ()
    given = None
    if recipe.makers[0] == recipe.makers[1]:
        first, second = (view.given_to_layer(recipe.makers[0], take) for take in recipe.takes)
        given = None if first is None or second is None or first[1] == second[1] else (first, second)
    named = [recipe.key, *onward, *written, *layers, *(key for key, _ in given or ())]
    for take in recipe.takes:
        made = () if take.made is None else (take.made[0],)
        named += [take.at[0], *(key for key, _ in take.readers), *made, *take.passing]
    spots = {key: view.spot(key) for key in named if key is not None}
    waits = recipe.scatter is None and view.waits(recipe.takes, event)
    return replace(recipe, spots=spots, layers=(layers[0], layers[1]), given=given, onward=onward, waits=waits)


Pair = tuple[tuple[Met, ...], tuple[Met, ...]]


def _operand_pairs(meeting: Meeting) -> list[Pair]:
    """Every pair of operands that meet, in operand order; nested homes are a pair where a mixed stream re-enters."""
    once: dict[int, Met] = {}
    for met in meeting.operands:
        if met.position != meeting.op.row.weight:
            once.setdefault(met.info.uid, met)
    operands = tuple(once.values())
    pairs: list[Pair] = [((a,), (b,)) for a, b in itertools.combinations(operands, 2) if not comparable(a.home, b.home)]
    return pairs or [((a,), (b,)) for a, b in itertools.combinations(operands, 2) if a.home != b.home or meeting.level]


def _attention_pairs(meeting: Meeting) -> list[Pair]:
    """The query, and the key and the values together."""
    query = meeting.operands[0]
    others = [met for met in meeting.all_operands() if met is not query]
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
    sides: list[Side] = []
    takes: list[Take] = []
    words = (f"what {op.name} writes into", f"what {op.name} writes")
    for (met, *_), (shape, layout), anchor in zip(pair, (found.into, found.source), words, strict=True):
        dtype = str(met.info.dtype).removeprefix("torch.")
        partly = not sides and not found.scatter.written
        sides.append(Side(ordered(run, met.home), shape, dtype, layout, anchor, partly=partly))
        if not layout.known:
            obstacle = obstacle or unknown_axis(sides[-1])
        at = (op.key, met.position)
        takes.append(view.taken(met.info.uid, at, (at,)))
    if host == "?":
        obstacle = "the owner is created inside forward, so RegBN cannot be registered in it"
    scatter = found.scatter
    in_sequence = any(side.layout.sequence or scatter.axis in side.layout.spatial_dims for side in sides)
    reduce: Reduce = "mean" if not scatter.written or in_sequence else "flatten"
    site = Site(host, (sides[0], sides[1]), reduce, role, None, obstacle)
    recipe = Recipe(
        owner=host,
        key=op.key,
        takes=(takes[0], takes[1]),
        role=role,
        masking=masking_of_scatter(view, sides, bool(scatter.written)),
        makers=(layer_behind(run, takes[0].uid), layer_behind(run, takes[1].uid)),
        scatter=scatter,
    )
    return site, recipe


def _around_heads(
    run: Run, meeting: Meeting, view: FrameView, event: Event, pair: Pair
) -> tuple[FrameView, Event, tuple[Take, Take]] | None:
    """For an attention whose owner is given heads: the module around it that has the tokens of both sides before they
    are projected, its call of the attention, and these tokens. None where the owner has them, and where none has."""
    if meeting.kind != "attention" or meeting.op.module is not None:
        return None
    starts = [tuple(met.info.uid for met in side) for side in pair]
    projected = [False, False]
    inner, call = view, event
    while True:
        streams = [inner.stream_before_projection(uids, done) for uids, done in zip(starts, projected, strict=True)]
        if None not in streams:
            break
        apart = [uids for uids, stream in zip(starts, streams, strict=True) if stream is None and len(set(uids)) > 1]
        if inner is view and any(inner.stream_before_projection(uids[:1]) is not None for uids in apart):
            return None  # fitted on the keys alone
        for side, stream in enumerate(streams):
            if stream is not None:
                starts[side], projected[side] = (stream[0],), stream[1]
        given = [[inner.given_as(uid) for uid in uids] for uids in starts]
        parent = inner.frame.parent
        if parent is None or run.trace.frames[parent].path == "?" or any(None in uids for uids in given):
            return None
        starts = [tuple(dict.fromkeys(uid for uid in uids if uid is not None)) for uids in given]
        key = inner.frame.key
        inner = FrameView(run.trace.frames[parent], run.trace, run.flow, run.layout)
        call = next(each for each in inner.events if each.key == key)
    if inner is view:
        return None
    takes = [inner.take(s[0], uids, call) for s, uids in zip(streams, starts, strict=True) if s is not None]
    return inner, call, (takes[0], takes[1])


def _site(
    run: Run,
    meeting: Meeting,
    view: FrameView,
    event: Event,
    pair: Pair,
    role: int,
    known: tuple[Take, Take] | None = None,
) -> tuple[Site, Recipe]:
    """`known` are the sides where `view` is not the owner's call, but that of a module around it."""
    if meeting.kind == "scatter":
        return _scatter_site(run, meeting, view, pair, role)
    leaf = meeting.op.module
    takes, gate, obstacle = [], None, None
    for i, side in enumerate(pair):
        take, reason = (known[i], None) if known else _take(meeting, view, event, side, leaf, pair[1 - i])
        takes.append(take)
        obstacle = obstacle or reason
        if not take.readers:
            gate = i
    joint = [uid for op in (meeting.op, *(op for op, _ in meeting.more)) for uid in op.outputs]
    sides = tuple(
        replace(
            _side(run, view, take, event, side), bounded=why_bounded(run, take.uid, joint) if take.readers else None
        )
        for take, side in zip(takes, pair, strict=True)
    )
    host = view.frame.path
    if meeting.op.name == "vmap":
        obstacle = "the modalities meet inside a function under torch.vmap, which is called once for all samples"
    if host == "?":
        obstacle = "the owner is created inside forward, so RegBN cannot be registered in it"
    site = _with_samples(Site(host, (sides[0], sides[1]), "flatten", role, gate, obstacle))
    sides = site.sides
    site = replace(site, reduce=_reduce(meeting, sides, site.gate))
    arguments = _leaf_arguments(meeting, pair) if leaf is not None else None
    whole = tuple(
        take.argument is not None
        and all((reader.key, position) in take.readers for reader, position in view.readers.get(take.uid, ()))
        for take in takes
    )
    recipe = Recipe(
        owner=host,
        key=event.key,
        takes=(takes[0], takes[1]),
        leaf=leaf if arguments else None,
        leaf_arguments=arguments,
        role=role,
        cycle=None,
        caller="",
        masking=masking_of(view, sides, meeting),
        repeats=False,
        whole_input=(whole[0], whole[1]),
        makers=(layer_behind(run, takes[0].uid), layer_behind(run, takes[1].uid)),
    )
    return site, recipe


def _with_samples(site: Site) -> Site:
    """The site with what keeps its samples from being known. Rows that fold time into both sides alike are samples."""
    strange = next((side for side in site.sides if not side.layout.known), None)
    if site.obstacle is not None or strange is None:
        return site
    open_site = replace(site, unknown=True)
    by_rows = open_site.by_rows()
    folds = {side.layout.folded for side in site.sides}
    if by_rows is not None and len(folds) == 1 and None not in folds:
        return by_rows
    remedy = "" if by_rows is None else "; if each of its rows is a sample, say `samples: rows` in the rule"
    return replace(open_site, obstacle=unknown_axis(strange) + remedy)


def unknown_axis(side: Side) -> str:
    """Which axis of a side is not known, and why."""
    what = "batch" if side.layout.batch_dim is None else "channel"
    shape = "×".join(map(str, side.shape))
    # What is known of the batch axis stands first, then what is known of the channels.
    why = side.layout.evidence[:1] if what == "batch" else side.layout.evidence[1:]
    words = "; ".join(why).removeprefix(f"{what} axis unknown: ")
    return f"the {what} axis of {side.anchor} ({shape}) is not known: {words}"


def _take(
    meeting: Meeting, view: FrameView, event: Event, side: tuple[Met, ...], leaf: str | None, other: tuple[Met, ...]
) -> tuple[Take, str | None]:
    uids = tuple(met.info.uid for met in side)
    if meeting.kind == "attention" and leaf is None:
        found = view.stream_before_projection(uids)
        if found is None and len(set(uids)) > 1:
            # Keys and values come by ways of their own (a position code on the keys alone): fit on the keys, replace
            # neither, as for torch's own attention.
            keys = view.stream_before_projection(uids[:1])
            if keys is not None:
                return view.read_only(keys[0]), None
        if found is None:
            first = Take(uids[0], (event.key, side[0].position), (), None)
            return first, "no [B, L, C] stream before the attention's projections was found in its owner"
        return view.take(found[0], uids, event), None
    if leaf is not None and len(set(uids)) > 1:
        # Key and value are different tensors (a position code on the keys alone): fit on the keys, replace neither.
        return view.read_only(uids[0]), None
    if meeting.gate is not None and side[0].position == meeting.gate:
        return view.read_only(view.before_squash(uids[0])), None
    if meeting.kind in ("matmul", "product", "bilinear") and leaf is None:
        behind = view.before_column(uids[0])
        if behind is not None:
            return view.take(behind, uids, event), None
    if meeting.kind in ("matmul", "bilinear") and leaf is None:
        behind = view.argument_behind(uids[0])
        if behind is not None:
            return view.take(behind, uids, event), None
    if meeting.outer:
        return view.take(view.before_broadcast(uids[0]), uids, event), None
    if meeting.kind == "similarity":
        theirs = view.before_normalisation(other[0].info.uid)
        stream = view.before_normalisation(uids[0], after=view.made_at(theirs))
        return view.take(stream, uids, event), None
    readers = tuple((event.key, position) for position, uid in enumerate(event.inputs) if uid in uids)
    return view.taken(uids[0], readers[0], readers), None


def _leaf_arguments(meeting: Meeting, pair: Pair) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Names of the leaf module's arguments that each side is: what a pre-hook on the leaf replaces."""
    names = meeting.op.row.arguments
    if not names or any(met.position >= len(names) for side in pair for met in side):
        return None
    first, second = (tuple(names[met.position] for met in side) for side in pair)
    return first, second


def _side(run: Run, view: FrameView, take: Take, event: Event, side: tuple[Met, ...]) -> Side:
    info = run.trace.tensors[take.uid]
    # An operand written to in place has another lineage after the call than it had at it.
    met = next((met.lineage for met in side if met.info.uid == take.uid), None)
    lineage = met or run.flow.lineages[take.uid]
    home = lineage.given if lineage.given and lineage.given == side[0].home else lineage.home
    if take.argument is not None:
        anchor = f"argument `{take.argument}`"
    elif take.uid in event.inputs:
        anchor = f"operand {event.inputs.index(take.uid)} of {event.op.name if event.op is not None else event.key[0]}"
    else:
        anchor = producer(run, take.uid)
    return Side(
        home=ordered(run, home),
        shape=info.shape,
        dtype=str(info.dtype).removeprefix("torch."),
        layout=run.layout(take.uid),
        anchor=anchor,
    )


def _reduce(meeting: Meeting, sides: Sequence[Side], gate: int | None) -> Reduce:
    """`mean` wherever tokens are met, whose number need not be the same in f and g or from batch to batch.

    A gate that is the same at every place has no tokens, also where it was made with an axis of size 1 for them.
    """
    everywhere = None if gate is None or set(sides[gate].spatial_shape) - {1} else gate
    tokens = any(side.layout.sequence for index, side in enumerate(sides) if index != everywhere)
    if meeting.kind == "attention" or tokens:
        return "mean"
    if meeting.kind == "concat" and meeting.op.row.axes != "stack":
        dim = concat_dim(meeting.op, len(sides[0].shape))
        if any(side.layout.known and dim in side.layout.spatial_dims for side in sides):
            return "mean"
    return "flatten"
