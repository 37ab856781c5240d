"""Which modalities f and g carry at each RegBN of a rewritten model, in any call, against what the rules say."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .._analysis import Observed, follow_streams
from .._analysis._finite import not_finite
from .._analysis._runs import Run, ordered
from .._codes import coded, text_of
from .._errors import RewriteError
from .._inputs import Batches, named_leaves
from .._rules.naming import home_name
from .._trace import Frame, tensor_of
from .._types import Modality
from .._visible import visible
from ._guard import MODALITIES, RECORD
from ._operations import Operation, name_in_host
from ._scatter import PositionSite
from ._site import Reached, RegBNSite, identity, site_at
from ._woven import writes


@dataclass(frozen=True)
class VerifiedSite:
    """One RegBN in one call: how often it ran, the modalities that f and g carried, once for each run that differs, and
    which of its results the model left aside.

    `problem` says in words what is not as the rule names it; "" where all is right (with `runs` 0: the rule says
    `missing: ignore`, and they do not meet in this call).
    """

    name: str  # its path in the model
    rule: str
    wanted: tuple[tuple[str, ...], tuple[str, ...]]
    carried: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    runs: int
    problem: str
    unused: tuple[str, ...] = ()  # "f", "g": what RegBN returned for it, nothing has read


@dataclass(frozen=True, repr=False)
class Verification:
    """What `verify` found, for every RegBN of a model."""

    model: str
    training: bool
    sites: tuple[VerifiedSite, ...]
    notes: tuple[str, ...] = ()  # on values that are not finite

    @property
    def ok(self) -> bool:
        """Whether every RegBN ran on the modalities and in the direction of its rule, and all it gave was used. With
        `missing: ignore` it need not run in a call in which they do not meet."""
        return not any(site.problem for site in self.sites)

    def to_dict(self) -> dict[str, Any]:
        """The content as plain JSON types."""
        sites = [
            {
                "name": site.name,
                "rule": site.rule,
                "wanted": {"f": list(site.wanted[0]), "g": list(site.wanted[1])},
                "carried": [{"f": list(f), "g": list(g)} for f, g in site.carried],
                "runs": site.runs,
                "problem": site.problem,
                "unused": list(site.unused),
            }
            for site in self.sites
        ]
        return {
            "model": self.model,
            "training": self.training,
            "ok": self.ok,
            "sites": sites,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [f"{self.model} in {'training' if self.training else 'evaluation'}:"]
        for site in self.sites:
            f, g = (home_name(side) for side in site.wanted)
            right = f"ran {site.runs} x, f is {f}, g is {g}, as the rule says"
            if not site.runs and not site.carried:
                right = f"did not run: f {f} and g {g} do not meet in this call (`missing: ignore`)"
            lines.append(f"  {site.name}: {site.problem or right}")
        lines += [f"  {note}" for note in self.notes]
        return visible("\n".join(lines))

    def __repr__(self) -> str:
        wrong = [site.name for site in self.sites if site.problem]
        return visible(
            f"<Verification of {self.model}: {'all right' if not wrong else 'wrong at ' + ', '.join(wrong)}>"
        )


def carried_in(model: nn.Module, batches: Batches, *, training: bool, writes: bool = False) -> Verification:
    """Run the rewritten model with identity in place of RegBN, and say what comes to each RegBN."""
    return carried_and_given(model, batches, training=training, writes=writes)[0]


def carried_and_given(
    model: nn.Module, batches: Batches, *, training: bool, writes: bool
) -> tuple[Verification, tuple[Observed, ...], Reached]:
    """The same, with what the model gave at both batch sizes, and which RegBN ran at any."""
    modalities: tuple[Modality, ...] = model.__dict__.get(MODALITIES, ())
    operations: tuple[Operation, ...] = model.__dict__[RECORD]
    given: Mapping[str, Any] = {m.name: m if m.modules or m.slice else m.inputs for m in modalities}
    with identity(copies=True) as reached:
        run, observed = follow_streams(model, batches, given or None, training=training, writes=writes)
    paths = {id(module): path for path, module in model.named_modules()}
    sites = []
    for operation in operations:
        host = model.get_submodule(operation.host)
        module = site_at(host, name_in_host(operation))
        sites.append(_verified(run, operation, module, paths[id(module)], host if module in reached else None))
    named = () if batches.given is None else named_leaves(model, batches.given)
    notes = not_finite([run], [(name, leaf) for name, leaf in named if isinstance(leaf, Tensor)])
    return Verification(type(model).__name__, training, tuple(sites), tuple(notes)), observed, reached


def _verified(
    run: Run, operation: Operation, module: RegBNSite, path: str, reached_in: nn.Module | None
) -> VerifiedSite:
    """`reached_in`: the host, where RegBN ran in it."""
    planned = operation.planned
    wanted = (planned.f.home, planned.g.home)
    frames = [frame for frame in run.trace.frames if frame.path == path]
    inputs = [dict(frame.inputs) for frame in frames]
    if not frames and reached_in is not None:  # in a layer of torch, which a trace does not look into
        inputs = _given_to_layer(run, operation, reached_in)
    carried = [_homes(run, each, module, wanted) for each in inputs]
    distinct = tuple(dict.fromkeys(carried))
    mixes = operation.code is not None and writes(operation.code.join.op)  # afterwards f is the joint stream
    wrong = [pair for pair in distinct if not _is_right(pair, wanted, mixes)]
    problem = ""
    if not inputs and reached_in is not None:
        problem = coded("RB205", "ran inside a layer of torch, where f and g cannot be checked")
    elif not inputs:
        where = _meeting_place(run, wanted, planned.point)
        if where or module.missing != "ignore":
            problem = coded("RB201", f"did not run: {_words(wanted)} {where or 'do not meet in this call'}")
    elif wrong:
        found = f"{_words(wrong[0])}, where the rule says {_words(wanted)}"
        exchanged = wanted[::-1] in wrong
        problem = coded("RB202", f"f and g are exchanged: {found}") if exchanged else ""
        problem = problem or coded("RB203", f"ran on other modalities: {found}")
    unused = _unused(run, frames)
    if unused and not problem:
        problem = coded("RB204", f"ran, but the model continues with {' and '.join(unused)} as before RegBN")
    return VerifiedSite(path, planned.rule, wanted, distinct, len(inputs), problem, unused)


def _given_to_layer(run: Run, operation: Operation, layer: nn.Module) -> list[dict[str, int]]:
    """The tensors that come to the arguments that a hook takes for f and g, at each call of a layer with the hook."""
    found = []
    for node in run.trace.graph.find_nodes(op="call_module", target=operation.host):
        given = inspect.signature(layer.forward).bind(*node.args, **node.kwargs).arguments
        names = {} if operation.hook is None else {"f": operation.hook.f, "g": operation.hook.g}
        infos = {
            side: tensor_of(next((given[name] for name in some if name in given), None)) for side, some in names.items()
        }
        known = {side: info.uid for side, info in infos.items() if info is not None}
        if {"f", "g"} <= set(known):
            found.append(known)
    return found


def _unused(run: Run, frames: Sequence[Frame]) -> tuple[str, ...]:
    """Which of f and g, as RegBN returned it, nothing has read in some run."""
    makers = {info.uid: node for node in run.trace.graph.nodes if (info := tensor_of(node)) is not None}
    unused = []
    for side, index in (("f", 0), ("g", 1)):
        made = [makers.get(frame.outputs[index]) for frame in frames if index < len(frame.outputs)]
        if any(node is not None and not node.users for node in made):
            unused.append(side)
    return tuple(unused)


def _meeting_place(run: Run, wanted: tuple[tuple[str, ...], tuple[str, ...]], point: str | None) -> str:
    """Where the two streams meet in a call in which they do not come to their RegBN, which is that of `point`; "" where
    they do not meet."""
    others: list[str] = []
    for exactly in (True, False):
        for meeting in run.flow.meetings:
            homes = [ordered(run, met.home) for met in meeting.all_operands()]
            pairs = ((f, g) for i, f in enumerate(homes) for j, g in enumerate(homes) if i != j)
            if pair := next((pair for pair in pairs if _covers(pair, wanted, exactly)), None):
                source = "" if meeting.op.source is None else f" ({meeting.op.source})"
                owner = run.trace.path_of(meeting.op)
                name = meeting.op.name.strip("_")
                call = f"`{name}`" + (f" in `{owner}`" if owner else "") + source
                carried = "" if exactly else f", as {_words(pair)}"
                if _is_of(point, owner, (name, meeting.kind)):
                    return f"meet at {call}{carried}, but are computed there in a way that the example did not show"
                others.append(f"meet at another call, {call}{carried}")
    return others[0] if others else ""


def _is_of(point: str | None, owner: str, names: Sequence[str]) -> bool:
    """Whether a fusion point has its id from this owner and one of these names of its call."""
    path, _, label = (point or "").rpartition(".")
    return path == owner and re.sub(r"_\d+$", "", label) in names


def _covers(
    found: tuple[tuple[str, ...], tuple[str, ...]], wanted: tuple[tuple[str, ...], tuple[str, ...]], exactly: bool
) -> bool:
    return found == wanted if exactly else found[0] != found[1] and _is_right(found, wanted, mixes=True)


def _homes(
    run: Run, inputs: Mapping[str, int], module: RegBNSite, wanted: tuple[tuple[str, ...], tuple[str, ...]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The streams of f and of g. What comes out of an attention is of the stream that asked and of the values': the one
    that is wanted counts."""
    names = ("f", "g")
    if isinstance(module, PositionSite):
        names = ("into", "full") if module.into_is_f else ("full", "into")
    homes = []
    for name, named in zip(names, wanted, strict=True):
        lineage = run.flow.lineages.get(inputs[name]) if name in inputs else None
        streams = [] if lineage is None else [ordered(run, home) for home in (lineage.home, lineage.given) if home]
        homes.append(named if named in streams else streams[0] if streams else ())
    return homes[0], homes[1]


def _is_right(
    found: tuple[tuple[str, ...], tuple[str, ...]], wanted: tuple[tuple[str, ...], tuple[str, ...]], mixes: bool
) -> bool:
    if mixes:
        return set(wanted[0]) <= set(found[0]) and set(wanted[1]) <= set(found[1])
    return found == wanted


def _words(pair: Sequence[Sequence[str]]) -> str:
    f, g = (home_name(side) or "nothing" for side in pair)
    return f"f {f} and g {g}"


def refuse_other_streams(
    model: nn.Module, batches: Batches, *, training: bool, writes: bool
) -> tuple[tuple[Observed, ...], Reached]:
    """What the model gave in the runs that were looked at, and which RegBN ran in them.

    Raises:
        RewriteError: where a RegBN gets other modalities than its rule names, or what it returns is not used.
    """
    found, observed, reached = carried_and_given(model, batches, training=training, writes=writes)
    told = []
    for site in found.sites:
        # Full backward hooks make new tensors of all inputs at once: in training more may seem to be there.
        pairs = [pair for pair in site.carried if not _is_right(pair, site.wanted, mixes=training)]
        if site.unused or (site.problem and pairs and all(f and g for f, g in pairs)):
            told.append(f"RegBN `{site.name}` {text_of(site.problem)} (rule `{site.rule}`)")
    if told:
        raise RewriteError("self-check failed: " + "; ".join(told))
    return observed, reached
