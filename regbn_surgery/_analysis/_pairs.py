"""Pairs that the rules name by their place in the model: `input:gray`, `module:audio.layer3`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from .._errors import PlanError
from .._spelling import nearest
from .._types import Side
from ._across import Across, Spot, calls_of, common_frame, first_read, seen_from
from ._anchors import FrameView, Take
from ._masks import NOT_ASKED, Masking, masking_of
from ._runs import Run
from ._sites import Recipe, placed


@dataclass(frozen=True)
class Pair:
    """A pair of places, resolved: the host, the two sides, and for hosts other than argument hooks the recipe."""

    host: str
    f: Side
    g: Side
    recipe: Recipe | None
    masking: Masking = NOT_ASKED


@dataclass(frozen=True)
class _Place:
    """A tensor and the frame in whose own calls it can be taken."""

    frame: int
    uid: int
    words: str
    is_input: bool
    output: int | None = None  # which of the tensors that the module returns


def resolve_pair(run: Run, f: str, g: str, *, f_only: bool = False) -> Pair:
    """Find both places in a run. `f_only`: RegBN returns no g', so that g may be read wherever it is handed to.

    Raises:
        PlanError: for a reference that is not understood or names nothing.
    """
    first, second = _place(run, f), _place(run, g)
    sides = _side(run, first), _side(run, second)
    if first.is_input and second.is_input:
        root = FrameView(run.trace.frames[0], run.trace, run.flow, run.layout)
        return Pair("", *sides, None, masking_of(root, sides))
    if first.frame != second.frame and f_only:
        second = _handed_on(run, first, second)
    if first.frame != second.frame:
        return _across(run, (first, second), (f, g))
    frame = run.trace.frames[first.frame]
    view = FrameView(frame, run.trace, run.flow, run.layout)
    takes = _take(view, first, f), _take(view, second, g)
    masking = masking_of(view, sides)
    recipe = Recipe(owner=frame.path, key=takes[0].at[0], takes=takes, masking=masking)
    return Pair(frame.path, *sides, placed(view, recipe, None), masking)


def named_pair(run: Run, f: int, g: int) -> tuple[str, str] | None:
    """Two references by which a rule with `replace: f` can name the tensors f and g, so that no call has to wait; None
    where there are none. Of several layers that give the same tensor, the outermost."""
    for pair in itertools.product(_makers(run, f), _makers(run, g)):
        try:
            recipe = resolve_pair(run, *pair, f_only=True).recipe
        except PlanError:
            continue
        if recipe is None or recipe.across is not None or recipe.waits:
            continue
        if (recipe.takes[0].uid, recipe.takes[1].uid) == (f, g):
            return pair
    return None


def _makers(run: Run, uid: int) -> list[str]:
    inputs = [f"input:{name}" for name, given in run.trace.inputs if given == uid]
    frames = [frame.path for frame in run.trace.frames[1:] if uid in frame.outputs and uid not in frame.reads]
    layers = [op.module for op in run.trace.calls if op.module and uid in op.outputs and uid not in op.inputs]
    return [*inputs, *(f"module:{path}" for path in dict.fromkeys((*frames, *layers)) if path != "?")]


def _handed_on(run: Run, f: _Place, g: _Place) -> _Place:
    """g as an argument of the module that calls f's, where each of its calls is given this very tensor: there g exists
    before f does, and no call has to wait for it."""
    frame = run.trace.frames[f.frame]
    calls = [each for each in run.trace.frames if each.path == frame.path]
    given = all(g.uid in dict(each.inputs).values() for each in calls)
    view = FrameView(frame, run.trace, run.flow, run.layout)
    if not given or frame.path in ("", "?") or not view.readers.get(g.uid):
        return g
    return replace(g, frame=f.frame)


def _across(run: Run, places: tuple[_Place, _Place], references: tuple[str, str]) -> Pair:
    """A pair that different modules call: its host is their lowest common ancestor, in which both are opened."""
    first, second = places
    common, opened = common_frame(run.trace, first.frame, second.frame, (first.words, second.words))
    host = run.trace.frames[common].path
    spots = []
    for place, reference in zip(places, references, strict=True):
        name = reference.partition(":")[2]
        spots.append(Spot(None, name) if place.is_input else Spot(seen_from(host, name), output=place.output))
    take = Take(first.uid, (("", "", 0, 0), 0), ()), Take(second.uid, (("", "", 0, 0), 0), ())
    makers = tuple(None if place.is_input else r.partition(":")[2] for place, r in zip(places, references, strict=True))
    sides = _side(run, first), _side(run, second)
    view = FrameView(run.trace.frames[common], run.trace, run.flow, run.layout)
    masking = masking_of(view, sides)
    recipe = Recipe(
        owner=host,
        key=("", "", 0, 0),
        takes=take,
        masking=masking,
        makers=(makers[0], makers[1]),
        across=Across(spots[0], spots[1], tuple(seen_from(host, path) for path in opened)),
    )
    return Pair(host, *sides, recipe, masking)


def _place(run: Run, reference: str) -> _Place:
    kind, _, name = reference.partition(":")
    if kind == "input" and name:
        return _input(run, name)
    if kind == "module" and name:
        return _module(run, name)
    raise PlanError(f"pair: {reference!r} is not understood; write input:NAME or module:PATH")


def _input(run: Run, name: str) -> _Place:
    uids = dict(run.trace.inputs)
    if name not in uids:
        raise PlanError(f"pair: there is no input {name!r}; {_choices(name, list(uids), 'the inputs are')}")
    info = run.trace.tensors[uids[name]]
    if not info.is_float:
        kind = str(info.dtype).removeprefix("torch.")
        raise PlanError(f"pair: input {name!r} holds {kind} values; RegBN normalises floating-point features")
    return _Place(0, uids[name], f"input `{name}`", True)


def _module(run: Run, path: str) -> _Place:
    """What a module returns; of several tensors the first that is read, as `h` is of `_, h = self.gru(x)`."""
    trace = run.trace
    for frame, outputs in calls_of(trace, path):
        uid = first_read(trace, frame, outputs)
        return _Place(frame, uid, f"module `{path}`", False, tuple(outputs).index(uid))
    called = [op.module for op in trace.calls if op.module] + [frame.path for frame in trace.frames if frame.path]
    raise PlanError(f"pair: no module {path!r} is called; {_choices(path, called, 'some that are:')}")


def _choices(name: str, names: list[str], lead: str) -> str:
    near = nearest(name, names)
    hint = "" if near is None else f" Did you mean {near!r}?"
    return f"{lead} {', '.join(map(repr, names[:12]))}.{hint}"


def _side(run: Run, place: _Place) -> Side:
    info = run.trace.tensors[place.uid]
    lineage = run.flow.lineages.get(place.uid)
    home = tuple(name for name in run.order if lineage is not None and name in lineage.home)
    return Side(home, info.shape, str(info.dtype).removeprefix("torch."), run.layout(place.uid), place.words)


def _forward_of(view: FrameView) -> str:
    return f"the forward of `{view.frame.path}`" if view.frame.path else "the model's own forward"


def _take(view: FrameView, place: _Place, reference: str) -> Take:
    readers = tuple((event.key, position) for event, position in view.readers.get(place.uid, ()))
    if not readers:
        raise PlanError(f"pair: nothing in {_forward_of(view)} reads what {reference!r} gives")
    return view.taken(place.uid, readers[0], readers)
