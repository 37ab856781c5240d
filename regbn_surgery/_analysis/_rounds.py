"""A call in a loop over time is one fusion point: which calls are rounds of one, and where each round takes its sides.

The number of rounds follows the length of the example, so that nothing may depend on it. What the rounds share is the
way in which the counters of their calls go up: the second call of a line in the first round, and three calls of that
line in each, make it the fifth in the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from .._trace import Call
from .._types import Kind, Site
from ._anchors import Key, Reader, Take
from ._axes import split_dim
from ._met import Meeting
from ._runs import Run

Line = tuple[str, str, int]
Members = list[tuple[Run, Meeting]]
Place = tuple[str, Key]  # path of the owner, and the call
Groups = dict[Place, Members]

#: Of these the sites are the operands of the call itself, whatever happens before it.
_JOINING: frozenset[Kind] = frozenset({"concat", "sum", "product", "module"})
#: Whose sites are not taken by the calls that read them.
_ONE_BY_ONE: frozenset[Kind] = frozenset({"scatter", "similarity", "loss"})


@dataclass(frozen=True)
class Rounds:
    """`key` is the fusion call in the first round; `steps` say of each line how many calls one round makes of it (0:
    before the loop), in the place where a key has its count, so that recipes can hold them as they hold keys.

    `once`: the rounds take the very same two tensors, so that RegBN is called once for all of them.
    """

    key: Key
    steps: tuple[Key, ...]
    once: bool = False

    def step(self, line: Line) -> int:
        """How many calls of a line one round makes."""
        return next((number for *of, number in self.steps if tuple(of) == line), 0)

    def shifted(self, key: Key, times: int) -> Key:
        """The same call of a later round."""
        return (*key[:3], key[3] + times * self.step(key[:3]))

    def round_of(self, first: Key, found: Key) -> int | None:
        """In which round `found` is what `first` is in the first; None where it never is."""
        step = self.step(first[:3])
        ahead = found[3] - first[3]
        if first[:3] != found[:3] or ahead < 0 or (ahead % step if step else ahead):
            return None
        return ahead // step if step else 0


def rounds_merged(groups: Groups, known_rounds: Callable[[Members], bool]) -> Groups:
    """Meetings by place, the rounds of one loop under the first: they join outputs of the same layers in the same way.

    A loop over layers is none: each of its rounds has layers of its own. Gates, attention and outer sums take their
    sides at other calls than their own; `known_rounds` says whether each round does so at the same calls as the first.
    """
    merged: Groups = {}
    first: dict[tuple[object, ...], Place] = {}
    makers: dict[int, dict[int, Call]] = {}
    for place, members in groups.items():
        run, meeting = members[0]
        if meeting.kind in _ONE_BY_ONE:
            merged[place] = members
            continue
        if id(run) not in makers:
            makers[id(run)] = _makers(run)
        same = first.setdefault((place[0], *_signature(run, meeting, makers[id(run)])), place)
        merged.setdefault(same, []).extend(members)
    out: Groups = {}
    for place, members in merged.items():
        if _joins(members[0][1]) or known_rounds(members):
            out[place] = members
        else:
            out.update(_apart(place[0], members))
    return {place: out[place] for place in groups if place in out}


def _joins(meeting: Meeting) -> bool:
    return meeting.kind in _JOINING and meeting.gate is None and not meeting.outer and not meeting.more


def _apart(path: str, members: Members) -> Groups:
    out: Groups = {}
    for run, meeting in members:
        out.setdefault((path, meeting.op.key), []).append((run, meeting))
    return out


def _makers(run: Run) -> dict[int, Call]:
    """The call that made each tensor, not one that wrote to it or gave it back as it is (a `to` of its own dtype)."""
    made: dict[int, Call] = {}
    for op in run.trace.calls:
        for uid in op.outputs:
            if uid not in op.inputs:
                made.setdefault(uid, op)
    return made


def _signature(run: Run, meeting: Meeting, makers: Mapping[int, Call]) -> tuple[object, ...]:
    operands = tuple((met.home, met.info.shape, _layers_behind(run, met.info.uid, makers)) for met in meeting.operands)
    offset = meeting.op.source.offset if meeting.op.source is not None else 0
    more = tuple(op.key[:3] for op, _ in meeting.more)
    return (meeting.op.key[:3], offset, meeting.level, meeting.kind, meeting.gate, meeting.outer, more, operands)


def _layers_behind(run: Run, uid: int, makers: Mapping[int, Call]) -> frozenset[tuple[object, ...]]:
    """The nearest layers that a tensor comes out of, each with which part of its channels. What was written to it last
    counts as well."""
    found: set[tuple[object, ...]] = set()
    seen: set[tuple[int, tuple[int, ...]]] = set()
    todo: list[tuple[int, tuple[int, ...]]] = [(uid, ())]
    while todo:
        uid, parts = todo.pop()
        if (uid, parts) in seen or uid not in run.flow.producers:
            continue
        seen.add((uid, parts))
        last = run.trace.calls[run.flow.producers[uid]]
        for op in (last,) if makers.get(uid, last) is last else (last, makers[uid]):
            if op.module is not None:
                found.add((op.module, *parts))
                continue
            of = parts
            if op.row.does("splits") and not parts:
                before = op.inputs[0]
                if split_dim(op, len(run.trace.tensors[before].shape)) == run.layout(before).channel_dim:
                    of = (op.outputs.index(uid),)
            carrying = [i for i in op.inputs if i in run.flow.lineages and run.flow.lineages[i].touched]
            todo.extend((i, of) for i in carrying if i != uid)
    return frozenset(found)


def find_rounds(keys: Sequence[Key], takes: Sequence[tuple[Take, Take]], together: bool) -> Rounds | None:
    """How the calls at which each round takes its sides follow one another; None where they follow no rule.

    Args:
        keys: of the fusion call in each round.
        takes: of each round.
        together: whether all sides are operands of the fusion call, so that it does not matter who makes them.
    """
    steps: dict[Line, int] = {}
    first = _places(keys[0], takes[0], together)
    for number, (key, sides) in enumerate(zip(keys, takes, strict=True)):
        places = _places(key, sides, together)
        if number == 0:
            continue
        if [reader and (reader[0][:3], reader[1]) for reader in places] != [r and (r[0][:3], r[1]) for r in first]:
            return None
        for before, now in zip(first, places, strict=True):
            if before is None or now is None:
                continue
            line, ahead = before[0][:3], now[0][3] - before[0][3]
            if ahead % number or steps.setdefault(line, ahead // number) * number != ahead or ahead < 0:
                return None
    once = len({tuple(take.uid for take in sides) for sides in takes}) == 1
    if not steps.get(keys[0][:3]):
        return None
    return Rounds(keys[0], tuple((*line, number) for line, number in steps.items()), once)


def _places(key: Key, sides: tuple[Take, Take], together: bool) -> list[Reader | None]:
    """Every call that a round's recipe names, in a fixed order."""
    places: list[Reader | None] = [(key, 0)]
    for take in sides:
        places += [take.at, *take.readers, None if together else take.made]
    return places


def across_rounds(site: Site, takes: tuple[Take, Take], rounds: Rounds) -> tuple[Site, tuple[Take, Take]]:
    """A site of a loop, with what its rounds cannot replace only read.

    A stream that is projected before the loop is read by every round, and no round can change what the others read.
    """
    fixed = [i for i in (0, 1) if any(not rounds.step(key[:3]) for key, _ in takes[i].readers)]
    if rounds.once or not fixed:
        return site, takes
    (side, *others) = fixed
    if others or site.gate == 1 - side:
        obstacle = "what RegBN would replace there is projected before the loop in which the streams meet"
        return replace(site, obstacle=site.obstacle or obstacle), takes
    kept = tuple(replace(take, readers=()) if i == side else take for i, take in enumerate(takes))
    return replace(site, gate=side), (kept[0], kept[1])
