"""From meetings to fusion points: one per owner and site, with kind, level, operands and the pairs RegBN could take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import networkx as nx

from .._capture import Frame, Trace
from .._types import NEVER_BY_DEFAULT, FusionPoint, Kind, Level, Operand, Site
from ._anchors import Key
from ._axes import SPLITS, split_dim
from ._flow import Meeting, Met
from ._lineage import Home
from ._runs import Run, ordered, producer
from ._sites import Recipe, find_sites

_NO_LEVEL: frozenset[Kind] = frozenset({"similarity", "loss"})


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
    operands: list[Met] = []
    roles: dict[tuple[Home, ...], int] = {}
    for member_run, member in members:
        if member_run is run:
            roles.setdefault(_role(member), len(roles))
    repeats = len({m.op.key for _, m in members}) > 1
    cycle, caller = _cycle(run, owner, {m.op.frame: roles[_role(m)] for r, m in members if r is run})
    for role_homes, role in roles.items():
        member = next(m for r, m in members if r is run and _role(m) == role_homes)
        seen = {met.home for met in operands}  # a shared owner may be given other streams in another role
        operands.extend(met for met in member.all_operands() if role == 0 or met.home not in seen)
        for site, recipe in find_sites(run, member, role):
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
        operands=tuple(_operand(run, met) for met in operands),
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
        modalities=ordered(run, met.lineage.touched),
        home=ordered(run, met.home),
        producer=producer(run, met.info.uid),
        shape=met.info.shape,
        dtype=str(met.info.dtype).removeprefix("torch."),
        layout=run.layout(met.info.uid),
    )


# -- sites ------------------------------------------------------------------------------------------------------------
