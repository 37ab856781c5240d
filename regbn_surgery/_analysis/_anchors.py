"""Where RegBN takes f and g at a fusion point, and where it puts them back: the table of DESIGN's section 5.

The operands of an attention product are per-head projections; what a person means are the token streams before the
projection. Inside the frame of the owner every tensor has a chain of tensors that all its data passed through; RegBN
goes to the right one of these.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import CodeType

from .._ops import Operation, Value, names_a_norm, operation
from .._trace import Call, Frame, Trace
from .._types import Layout, Source
from . import _axes as ax
from ._flow import Flow
from ._lineage import Lineage

Key = tuple[str, str, int, int]
Frames = tuple[tuple[CodeType, int, str], ...]  # the user's functions that run, innermost first, as in `Source`
Reader = tuple[Key, int]  # an event of the owner's frame, and which of its tensor operands

#: Behind these the numbers are the same, laid out otherwise.
_TRANSPARENT: tuple[Value, ...] = ("reshapes", "permutes", "casts", "drops_out")
#: Between a gate's source and the gate: `1 + gamma`, and a broadcast.
_ROUND_A_GATE: tuple[Value, ...] = (*_TRANSPARENT, "scales", "shifts", "stretches")
#: Between an embedding and what a similarity compares.
_ROUND_A_SIMILARITY: tuple[Value, ...] = (*_TRANSPARENT, "scales", "shifts", "normalises")
#: Between tokens and their scores: activations, as linear and bilinear attention have them, and rotary codes.
_ROUND_A_PROJECTION: tuple[Value, ...] = (
    *_TRANSPARENT, "scales", "shifts", "activates", "splits", "rotary",
)  # fmt: skip


@dataclass(frozen=True)
class Spot:
    """Where a call of the owner stands: the user's functions that run there, innermost first, as in `Source`."""

    op: str
    frames: Frames
    turn: int = 0  # how many calls of the owner stood there before
    shared: bool = False  # whether several do


@dataclass(frozen=True)
class Event:
    """A call in the owner's own frame: a torch call, or the call of a child, looked into or not."""

    key: Key
    order: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    op: Call | None
    child: str | None
    source: Source | None

    @property
    def row(self) -> Operation:
        """What the table of operations says of it; a child that was looked into is none of its rows."""
        return self.op.row if self.op is not None else operation("")


@dataclass(frozen=True)
class Take:
    """Where one side is taken (`at`: any reader of the tensor) and which readers get the normalised one instead.

    `argument` is set where the tensor is an argument of the owner itself, `made` (an event and which of its outputs)
    where a call of the owner makes it. `passing` are calls that gave the very tensor back, and in other runs give
    another: casts (under autocast), `contiguous`, dropout.
    """

    uid: int
    at: Reader
    readers: tuple[Reader, ...]
    argument: str | None = None
    made: Reader | None = None
    passing: tuple[Key, ...] = ()


class FrameView:
    """One call of the owner, as a small dataflow graph of its own events."""

    def __init__(self, frame: Frame, trace: Trace, flow: Flow, layout: Callable[[int], Layout]) -> None:
        self.frame = frame
        self.trace = trace
        self.flow = flow
        self.layout = layout
        self.arguments = {uid: name for name, uid in reversed(frame.inputs)}
        self.events = _events(frame, trace)
        self.maker: dict[int, Event] = {}
        self.readers: dict[int, list[tuple[Event, int]]] = {}
        for event in self.events:
            for position, uid in enumerate(event.inputs):
                self.readers.setdefault(uid, []).append((event, position))
            for uid in event.outputs:
                if uid not in event.inputs:
                    self.maker.setdefault(uid, event)

    def carries(self, uid: int) -> Lineage | None:
        lineage = self.flow.lineages.get(uid)
        return lineage if lineage is not None and lineage.touched else None

    def chain(self, starts: tuple[int, ...]) -> list[tuple[int, tuple[Event, ...]]]:
        """Tensors that all the data of `starts` passed through, nearest first, with the events in between."""
        frontier = dict.fromkeys(starts)
        found: list[tuple[int, tuple[Event, ...]]] = []
        crossed: list[Event] = []
        seen: set[int] = set()
        while frontier:
            if len(frontier) == 1:
                found.append((next(iter(frontier)), tuple(crossed)))
                crossed = []
            made = [(self.maker[uid].order, uid) for uid in frontier if uid in self.maker and uid not in self.arguments]
            if not made:
                break
            uid = max(made)[1]
            event = self.maker[uid]
            for other in event.outputs:
                frontier.pop(other, None)
            if event.order not in seen:
                seen.add(event.order)
                crossed.append(event)
            before = [i for i in event.inputs if self.carries(i) is not None and i not in event.outputs]
            if event.row.does("stretches"):
                before = before[:1]  # the other one gives its shape alone
            if not before:
                break
            frontier.update(dict.fromkeys(before))
        return found

    def take(self, uid: int, towards: tuple[int, ...], event: Event) -> Take:
        """Take `uid`; replace it for the readers through which it reaches the fusion call `event`."""
        wanted = self._leading_to(set(towards), event)
        readers = tuple(
            (reader.key, position)
            for reader, position in self.readers.get(uid, ())
            if reader is event or reader.order in wanted
        )
        return self.taken(uid, readers[0], readers)

    def read_only(self, uid: int) -> Take:
        reader, position = self.readers[uid][0]
        return self.taken(uid, (reader.key, position), ())

    def taken(self, uid: int, at: Reader, readers: tuple[Reader, ...]) -> Take:
        behind = self._without_zero(uid)
        if behind != uid:
            source = self.taken(behind, at, readers)
            return replace(source, uid=uid)
        maker = self.maker.get(uid)
        made = (maker.key, maker.outputs.index(uid)) if maker is not None and uid not in self.arguments else None
        return Take(uid, at, readers, self.arguments.get(uid), made, self._passing(uid))

    def _passing(self, uid: int) -> tuple[Key, ...]:
        read = [event for event, position in self.readers.get(uid, ()) if position == 0 and event.outputs == (uid,)]
        return tuple(event.key for event in read if event.op is not None and event.row.does(*_TRANSPARENT))

    def _without_zero(self, uid: int) -> int:
        """What builtin `sum` has begun with: the tensor behind `0 + tensor`."""
        maker = self.maker.get(uid)
        if maker is None or maker.op is None or len(maker.inputs) != 1 or uid in self.arguments:
            return uid
        adds = maker.op.row.does("adds") and any(type(value) is int and value == 0 for value in maker.op.args)
        return maker.inputs[0] if adds and maker.inputs[0] != uid else uid

    def _leading_to(self, targets: set[int], event: Event) -> set[int]:
        """Orders of the events that make `targets`, directly or not."""
        wanted: set[int] = set()
        todo = list(targets)
        while todo:
            maker = self.maker.get(todo.pop())
            if maker is None or maker.order in wanted or maker is event:
                continue
            wanted.add(maker.order)
            todo.extend(maker.inputs)
        return wanted

    def spot(self, key: Key) -> Spot:
        """Where a call of the owner stands."""
        event = next(event for event in self.events if event.key == key)
        frames = event.source.frames if event.source is not None else ()
        text = _within_one_text(frames)
        inside = () if event.source is None else event.source.inside
        same = [
            e
            for e in self.events
            if e.source is not None and e.source.inside == inside and _within_one_text(e.source.frames) == text
        ]
        return Spot(key[0], frames, sum(other.order < event.order for other in same), len(same) > 1)

    def layer_of(self, path: str | None, take: Take) -> Key | None:
        """The owner's own call of the layer behind a tensor that it makes; None where it makes none, or where the same
        place calls another layer before the tensor is made."""
        made = next((event for event in self.events if take.made is not None and event.key == take.made[0]), None)
        layer = next((event for event in self.events if path is not None and event.child == path), None)
        if made is None or layer is None or layer.order > made.order or layer.source is None:
            return None
        between = [event.source for event in self.events if layer.order < event.order <= made.order]
        again = any(source is not None and source.frames == layer.source.frames for source in between)
        return None if again else layer.key

    def given_to_layer(self, path: str | None, take: Take) -> tuple[Key, str] | None:
        """The last call of the layer behind a tensor that the owner makes, and the owner's argument that it is given;
        None where it is given another thing."""
        made = next((event for event in self.events if take.made is not None and event.key == take.made[0]), None)
        if made is None or path is None:
            return None
        calls = [event for event in self.events if event.child == path and event.order <= made.order]
        name = self.arguments.get(calls[-1].inputs[0]) if calls and calls[-1].inputs else None
        return None if name is None else (calls[-1].key, name)

    def waits(self, takes: tuple[Take, Take], fusion: Event | None) -> bool:
        """Whether a call reads one side before the other exists. One that only gives another view of it, which the
        fusion call alone reads, does not count: the view can be taken again."""
        for take, other in (takes, takes[::-1]):
            maker = self.maker.get(other.uid) if other.made is not None else None
            for key, _ in take.readers if maker is not None else ():
                reader = next(event for event in self.events if event.key == key)
                if maker is not None and reader.order <= maker.order and not self._is_look(reader, fusion):
                    return True
        return False

    def _is_look(self, reader: Event, fusion: Event | None) -> bool:
        if fusion is None or reader.op is None or len(reader.outputs) != 1 or not self._only_reshapes(reader):
            return False
        users = [user for user, _ in self.readers.get(reader.outputs[0], ()) if user is not fusion]
        return not any(self.carries(uid) for user in users for uid in user.outputs)  # others read its shape alone

    def event_of(self, op: Call) -> Event:
        return next(event for event in self.events if event.op is op)

    # -- which tensor of a chain ------------------------------------------------------------------------------

    def stream_before_projection(self, starts: tuple[int, ...], projected: bool = False) -> tuple[int, bool] | None:
        """For attention: the `[B, L, C]` tokens before projection and splitting into heads, and whether these were
        projected. `projected` says that a module further in has done so already."""
        best: int | None = None
        for uid, events in self.chain(starts):
            projections = [event for event in events if self._projects(event)]
            if not projections and not all(self._sees_through(event) for event in events):
                break
            projected = projected or bool(projections)
            if self.layout(uid).known and (projected or len(self.trace.tensors[uid].shape) <= 3):
                best = uid
                if projected:
                    break  # one projection back is enough
        return None if best is None else (best, projected)

    def given_as(self, start: int) -> int | None:
        """The argument of the module that all of a tensor comes from; None where it has none or several."""
        return next(
            (uid for uid, _ in self.chain((start,)) if uid in self.arguments and self.trace.tensors[uid].is_float), None
        )

    def before_squash(self, start: int) -> int:
        """For gates: the tensor before sigmoid, `1 +` and broadcasting, in the shape `[B, C]` where there is one."""
        best = start
        squashed = False
        for uid, events in self.chain((start,)):
            for event in events:
                if event.row.does("squashes") and not squashed:
                    squashed = True
                elif not event.row.does(*_ROUND_A_GATE) and not self._only_reshapes(event):
                    return best
            best = uid
        return best

    def before_broadcast(self, start: int) -> int:
        """For outer sums and products: the tokens before they were stretched against each other."""
        best = start
        for uid, events in self.chain((start,)):
            if not all(self._only_reshapes(event) for event in events):
                break
            best = uid
        return best

    def before_column(self, start: int) -> int | None:
        """For tensor fusion: the features before a constant column was appended to them, and before the factors of a
        low-rank form; None where that is not how the tensor was made."""
        for uid, events in self.chain((start,)):
            if any(self._appends_constant(event) for event in events):
                return uid
            if not all(self._only_reshapes(event) or self._multiplies_weights(event) for event in events):
                return None
        return None

    def _appends_constant(self, event: Event) -> bool:
        """`cat([x, ones], dim=1)`, or `pad(x, (0, 1), value=1.0)`."""
        if event.op is None or len(event.outputs) != 1:
            return False
        if event.row.axes == "pad":
            return bool(ax.argument(event.op, 3, "value", 0))
        tensors = [self.trace.tensors[uid] for uid in event.inputs]
        if event.row.family != "concat" or event.row.axes == "stack" or len(tensors) < 2:
            return False
        dim = ax.concat_dim(event.op, len(tensors[0].shape))
        others = [info for info in tensors if self._is_constant(info.uid)]
        return len(others) == len(tensors) - 1 and all(info.shape[dim] == 1 for info in others)

    def _is_constant(self, uid: int) -> bool:
        """Whether a tensor is made here of no data and no parameter: `torch.ones(...)`, `x.new_ones(...)`."""
        maker = self.maker.get(uid)
        if maker is None or uid in self.arguments or self.carries(uid) is not None:
            return False
        return maker.row.carries == "nothing" or all(self._is_constant(i) for i in maker.inputs)

    def _multiplies_weights(self, event: Event) -> bool:
        if event.row.family not in ("matmul", "product"):
            return False
        others = [uid for uid in event.inputs if self.carries(uid) is None]
        return event.child is not None or any(self.trace.tensors[uid].parameter is not None for uid in others)

    def argument_behind(self, start: int) -> int | None:
        """The one argument of the owner that all of `start` comes from (the root's are inputs, not branches)."""
        return None if self.frame.path == "" else self.given_as(start)

    def _only_reshapes(self, event: Event) -> bool:
        if event.row.does("stretches"):
            return True
        if event.op is None or len(event.outputs) != 1 or len(event.inputs) != 1:
            return False
        sizes = [_numel(self.trace.tensors[uid].shape) for uid in (event.inputs[0], event.outputs[0])]
        return event.row.does(*_TRANSPARENT, "takes_part") and sizes[0] == sizes[1]

    def before_normalisation(self, start: int, *, after: int = -1) -> int:
        """For similarity heads: the embedding before it is normalised, scaled and transposed. One that is read only by
        calls behind event number `after`, where the other side exists, is taken before those that are read earlier."""
        best = start
        for uid, events in self.chain((start,)):
            if not all(event.row.does(*_ROUND_A_SIMILARITY) for event in events):
                break
            if all(reader.order > after for reader, _ in self.readers.get(uid, ())):
                best = uid
        return best

    def made_at(self, uid: int) -> int:
        """The order of the event that makes a tensor; -1 for an argument."""
        return -1 if uid in self.arguments or uid not in self.maker else self.maker[uid].order

    def _projects(self, event: Event) -> bool:
        if event.child is not None:
            op = event.op
            if op is None:
                return not names_a_norm(event.key[0])
            return op.row.axes in ("last", "convolution")
        parameters = any(self.trace.tensors[uid].parameter is not None for uid in event.inputs)
        return parameters and event.row.family == "matmul"

    def _sees_through(self, event: Event) -> bool:
        named = event.op.name if event.op is not None else event.key[0]
        return names_a_norm(named) or operation(named).does(
            *_ROUND_A_PROJECTION
        )  # queries and keys may have norms per head


@functools.lru_cache(maxsize=4096)
def _within_one_text(frames: Frames) -> Frames:
    """The functions that run without those that only call a function in their own text: a nested function, a lambda or
    a comprehension is one place, whoever calls it."""
    kept: list[tuple[CodeType, int, str]] = []
    for frame in frames:
        if not kept or not _is_inside(kept[-1][0], frame[0]):
            kept.append(frame)
    return tuple(kept)


def _is_inside(inner: CodeType, outer: CodeType) -> bool:
    return any(
        const is inner or (isinstance(const, CodeType) and _is_inside(inner, const)) for const in outer.co_consts
    )


def _numel(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _events(frame: Frame, trace: Trace) -> list[Event]:
    events = [
        Event(op.key, 0, op.inputs, op.outputs, op, op.module, op.source)
        for op in trace.calls
        if op.frame == frame.index
    ]
    starts = {event.key: event.op.index for event in events if event.op is not None}
    for child in trace.frames:
        if child.parent == frame.index:
            events.append(Event(child.key, 0, child.reads, child.outputs, None, child.path, child.source))
            starts[child.key] = child.start
    # A child that records nothing starts where the next call does; its own key then comes first.
    events.sort(key=lambda event: (starts[event.key], event.op is not None))
    return [replace(event, order=i) for i, event in enumerate(events)]
