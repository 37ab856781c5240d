"""From meetings to fusion points: one per owner and site, with kind, level, operands and the pairs RegBN could take."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .._later import nx
from .._trace import Frame, Trace
from .._types import NEVER_BY_DEFAULT, FusionPoint, Kind, Level, Operand, Site
from ._anchors import Frames
from ._lineage import Home
from ._met import Meeting, Met
from ._rounds import Groups, Members, Place, across_rounds, find_rounds, rounds_merged
from ._runs import Run, ordered, producer
from ._sites import Recipe, find_sites, view_of

_NO_LEVEL: frozenset[Kind] = frozenset({"similarity", "loss"})


@dataclass(frozen=True)
class Found:
    point: FusionPoint
    recipes: tuple[Recipe, ...]


def find_points(runs: Sequence[Run]) -> list[Found]:
    """Merge the meetings of all runs into fusion points, in the order of the forward."""
    groups: Groups = {}
    for run in runs:
        for meeting in run.flow.meetings:
            owner = _owner(run.trace, meeting)
            groups.setdefault((owner.path, meeting.op.key), []).append((run, meeting))
    merged = rounds_merged(groups, _known_rounds)
    places = {id(meeting): place for place, members in merged.items() for _, meeting in members}
    names: dict[str, int] = {}
    found = []
    gathered: set[int] = set()
    for place, members in list(merged.items()):
        if _joins_rounds(*members[0], places, gathered):
            for _, meeting in merged.pop(place):
                del places[id(meeting)]
                gathered.add(id(meeting))
    for (path, _), members in merged.items():
        label = _label(members[0][1])
        name = f"{path}.{label}" if path else label
        count = names[name] = names.get(name, -1) + 1
        found.append(_point(name if count == 0 else f"{name}_{count}", members, places))
    return found


def _joins_rounds(run: Run, meeting: Meeting, places: Mapping[int, Place], gathered: set[int]) -> bool:
    """Whether mixed streams only meet again as the rounds of one point, gathered over time. `gathered` has the ids of
    the earlier meetings of that kind."""
    if meeting.level != "remeeting":
        return False
    origins = [_origins(run, met, places, gathered) for met in meeting.operands]
    return all(a & b for a, b in itertools.combinations(origins, 2))


def _origins(run: Run, met: Met, places: Mapping[int, Place], gathered: set[int]) -> set[Place | int]:
    """Where the joint stream of an operand was joined; of gathered rounds, where these were."""
    found: set[Place | int] = set()
    for index in met.lineage.origins:
        meeting = run.flow.noted[index]
        if id(meeting) in gathered:
            found.update(*(_origins(run, each, places, gathered) for each in meeting.operands))
        else:
            found.add(places.get(id(meeting), index))
    return found


def _known_rounds(members: Members) -> bool:
    """Whether the sites of every round of a loop are taken at the same calls as those of the first."""
    run, meeting = members[0]
    return _one_by_one(members) or _sites_of_rounds(run, _rounds(run, meeting, members), 0) is not None


def _one_by_one(members: Members) -> bool:
    return len({meeting.op.key for _, meeting in members}) == 1


def _rounds(run: Run, meeting: Meeting, members: Members) -> list[Meeting]:
    """The rounds of the loop that `meeting` stands in, in one call of its owner and in one role."""
    same = (m for r, m in members if r is run and m.op.frame == meeting.op.frame and _role(m) == _role(meeting))
    return list(same)


def _sites_of_rounds(run: Run, rounds: list[Meeting], role: int) -> list[tuple[Site, Recipe]] | None:
    """The sites of a call in a loop; None where its rounds take their sides in ways of their own."""
    view = view_of(run, rounds[0])
    found = [find_sites(run, meeting, role, view) for meeting in rounds]
    if len(rounds) == 1:
        return found[0]
    sites = []
    for turns in zip(*found, strict=True) if len({len(each) for each in found}) == 1 else ():
        site, recipe = turns[0]
        together = all(r.takes[0].at[0] == r.takes[1].at[0] == r.key for _, r in turns)
        steps = find_rounds([r.key for _, r in turns], [r.takes for _, r in turns], together)
        if steps is None:
            return None
        site, takes = across_rounds(site, recipe.takes, steps)
        sites.append((site, replace(recipe, takes=takes, repeats=True, rounds=steps)))
    return sites if len(sites) == len(found[0]) else None


def _sites(run: Run, meeting: Meeting, role: int, members: Members) -> list[tuple[Site, Recipe]]:
    if not _one_by_one(members):
        sites = _sites_of_rounds(run, _rounds(run, meeting, members), role)
        if sites is not None:
            return sites
    found = find_sites(run, meeting, role)
    # A call whose counters follow no rule is a round wherever it comes.
    return [(site, replace(recipe, repeats=not _one_by_one(members))) for site, recipe in found]


def _owner(trace: Trace, meeting: Meeting) -> Frame:
    frame = trace.frames[meeting.op.frame]
    while frame.path == "?" and frame.parent is not None:  # a module made in forward has no path of its own
        frame = trace.frames[frame.parent]
    return frame


def _label(meeting: Meeting) -> str:
    if meeting.kind in ("attention", "similarity"):
        return meeting.kind
    return meeting.op.name.strip("_")


def _point(name: str, members: Members, places: Mapping[int, Place]) -> Found:
    run, meeting = members[0]
    owner = _owner(run.trace, meeting)
    sites: list[Site] = []
    recipes: list[Recipe] = []
    operands: list[Met] = []
    roles: dict[tuple[Home, ...], int] = {}
    for member_run, member in members:
        if member_run is run:
            roles.setdefault(_role(member), len(roles))
    frames = {m.op.frame: roles[_role(m)] for r, m in members if r is run}
    for role_homes, role in roles.items():
        member = next(m for r, m in members if r is run and _role(m) == role_homes)
        seen = {met.home for met in operands}  # a shared owner may be given other streams in another role
        operands.extend(met for met in member.all_operands() if role == 0 or met.home not in seen)
        for index, (site, recipe) in enumerate(_sites(run, member, role, members)):
            sites.append(site)
            elsewhere = functools.partial(_elsewhere, members, run, role_homes, role, index)
            recipes.append(replace(_turned(run, recipe, owner, frames), elsewhere=elsewhere))
    level = _level(run, meeting, places)
    whole = _whole_numbers(operands)
    if whole is not None:
        sites = [replace(site, obstacle=whole) for site in sites]
    selected = meeting.kind not in NEVER_BY_DEFAULT and level != "remeeting" and whole is None
    point = FusionPoint(
        id=name,
        owner=owner.path,
        owner_class=owner.class_name,
        kind=meeting.kind,
        op=meeting.op.name,
        source=None if meeting.op.source is None else replace(meeting.op.source, frames=()),
        level=level,
        selected_by_default=selected,
        operands=tuple(_operand(run, met) for met in operands),
        sites=tuple(sites),
        group=f"{re.sub(r'[0-9]+', '*', owner.path)}:{owner.class_name}:{meeting.kind}",
        modes=tuple(dict.fromkeys(member_run.mode for member_run, _ in members)),
        note=meeting.note,
    )
    return Found(point, tuple(recipes))


def _whole_numbers(operands: Sequence[Met]) -> str | None:
    """Why RegBN cannot go where ids or codes are joined, before they are looked up in a table."""
    numbers = next((met for met in operands if not met.info.is_float), None)
    if numbers is None:
        return None
    kind = str(numbers.info.dtype).removeprefix("torch.")
    return (
        f"operand {numbers.position} holds {kind} values, and RegBN normalises floating-point features; name two "
        "places where these are features by a rule with `pair`"
    )


def _elsewhere(members: Members, first: Run, homes: tuple[Home, ...], role: int, index: int) -> tuple[Recipe, ...]:
    """The site number `index` of a role as the other runs have it."""
    found = []
    for run in {id(run): run for run, _ in members if run is not first}.values():
        member = next((m for r, m in members if r is run and _role(m) == homes), None)
        sites = [] if member is None else _sites(run, member, role, [(r, m) for r, m in members if r is run])
        if index < len(sites):
            found.append(sites[index][1])
    return tuple(found)


def _role(meeting: Meeting) -> tuple[Home, ...]:
    return tuple(met.home for met in meeting.operands)


def _cycle(run: Run, owner: Frame, roles: dict[int, int]) -> tuple[tuple[int, ...] | None, str]:
    """The roles of the owner's calls in order within one call of their common caller, and the caller's path.

    None where every call has the same role, so that no counting is needed.
    """
    frames = run.trace.frames
    all_calls = [frame.index for frame in frames if frame.path == owner.path]
    around = {above for index in all_calls for above in _above(run.trace, index)}
    calls = [index for index in all_calls if index not in around]  # one that calls itself is not where streams meet
    if len({roles.get(index, -1) for index in calls}) == 1:
        return None, ""
    chains = []
    for index in calls:
        chains.append(_above(run.trace, index)[::-1])
    common = [level[0] for level in zip(*chains, strict=False) if len(set(level)) == 1]
    return tuple(roles.get(index, -1) for index in calls), frames[common[-1]].path if common else ""


def _ways(run: Run, owner: str, caller: str, roles: Mapping[int, int]) -> Iterator[tuple[Frames, int]]:
    """The functions that lead from the caller to each call of an owner, and its role."""
    frames = run.trace.frames
    for call in frames:
        above = _above(run.trace, call.index)
        if call.path != owner or any(frames[index].path == owner for index in above):
            continue
        start = next((number for number, index in enumerate(above) if frames[index].path == caller), None)
        if start is not None:
            sources = [frames[index].source for index in (call.index, *above[:start])]
            yield tuple(frame for source in sources if source for frame in source.frames), roles.get(call.index, -1)


def _turned(run: Run, recipe: Recipe, owner: Frame, roles: dict[int, int]) -> Recipe:
    """The recipe with the roles of the calls of its owner, or of a module around the owner that has its sides."""
    if recipe.owner in (owner.path, "?"):
        cycle, caller = _cycle(run, owner, roles)
        ways = () if cycle is None else tuple(dict.fromkeys(_ways(run, owner.path, caller, roles)))
        return replace(recipe, cycle=cycle, caller=caller, ways=ways)
    frames = run.trace.frames
    around: dict[int, set[int]] = {}
    for index, role in roles.items():
        above = next(i for i in _above(run.trace, index) if frames[i].path == recipe.owner)
        around.setdefault(above, set()).add(role)
    if any(len(several) > 1 for several in around.values()):  # its calls of the owner are told apart as they stand
        return replace(recipe, role=0)
    first = next(iter(around))
    of_calls = {index: role for index, (role,) in around.items()}
    cycle, caller = _cycle(run, frames[first], of_calls)
    ways = () if cycle is None else tuple(dict.fromkeys(_ways(run, recipe.owner, caller, of_calls)))
    return replace(recipe, cycle=cycle, caller=caller, ways=ways)


def _above(trace: Trace, index: int) -> list[int]:
    """The calls around a call, innermost first."""
    chain, parent = [], trace.frames[index].parent
    while parent is not None:
        chain.append(parent)
        parent = trace.frames[parent].parent
    return chain


def _level(run: Run, meeting: Meeting, places: Mapping[int, Place]) -> Level:
    if meeting.level == "remeeting":
        return "remeeting"
    if not any(met.lineage.parametrised for met in meeting.operands):
        return "early"
    own = places[id(meeting)]
    later = nx.descendants(run.flow.graph, meeting.op.index) - {op.index for op, _ in meeting.more}
    for other in run.flow.meetings:
        place = places.get(id(other), own)
        if other.op.index in later and place != own and other.kind not in _NO_LEVEL:
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
