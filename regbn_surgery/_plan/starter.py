"""Writes a first rules file for a model from what inspection found: every point that RegBN can go to, with a rule.

Each rule is tried before it is written, so that the file can be used as it is; what cannot be done stands in it as a
comment, with the reason.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from .._codes import text_of
from .._errors import PlanError, RegBNError
from .._rules.document import Rules
from .._rules.matching import spell_homes
from .._rules.naming import home_name
from .._rules.presets import preset_names
from .._rules.schema import Rule
from .._types import FusionPoint, Inspection
from .direction import directed_sites
from .facts import Facts, with_causality
from .hazards import out_of_range
from .planner import decide

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED = {"true", "false", "null", "yes", "no", "on", "off"}
_SHOWN = 12  # inputs and points named in comments
Home = tuple[str, ...]


@dataclass(frozen=True)
class _Draft:
    """A rule for some points, as lines of YAML."""

    points: tuple[FusionPoint, ...]
    meeting: str  # what meets there, f before g
    lines: tuple[str, ...]
    trouble: str | None = None  # why it cannot be used; it is then written as a comment


def starter(inspection: Inspection, facts: Facts | None = None) -> str:
    """A commented rules file that plans cleanly.

    Points that no rule selects by default (similarity, loss, streams that meet again) have a rule where no other
    point can have one. Raises PlanError where there is no point that RegBN could go to.
    """
    facts = facts or Facts()
    head = "\n".join(_modalities(inspection)) + "\n"
    defaults = "\n".join(_defaults(inspection, facts))
    drafts = _drafts(inspection, facts, head, selected=True)
    if all(draft.trouble for draft in drafts):  # those that are left alone by default are better than an empty file
        drafts += _drafts(inspection, facts, head, selected=False)
    if all(draft.trouble for draft in drafts):
        raise PlanError(_nothing(inspection, drafts))
    lines = [*_title(inspection), head, defaults, "rules:"]
    for draft in drafts:
        lines += _rule(draft)
    lines += _unselected(inspection, facts, {point.id for draft in drafts for point in draft.points})
    text = "\n".join(lines) + "\n"
    decide(Rules.from_text(text, "the starter file"), inspection, None, facts)  # as a whole, too
    return text


def _drafts(inspection: Inspection, facts: Facts, head: str, *, selected: bool) -> list[_Draft]:
    """A rule for each group of points, of those that are selected by default or of the others."""
    drafts: list[_Draft] = []
    for group in _groups(inspection, selected):
        together = _tried(inspection, facts, head, group, len(drafts) + 1)
        if together.trouble is None or len(group) == 1:
            drafts.append(together)
        else:  # one bad point keeps no other from its rule
            for point in group:
                drafts.append(_tried(inspection, facts, head, (point,), len(drafts) + 1))
    return drafts


def _nothing(inspection: Inspection, drafts: Sequence[_Draft]) -> str:
    """Why no rule can be written, and what to do."""
    start = f"no rules file for {inspection.model}: "
    if drafts:
        whys = "".join(f"\n  `{draft.points[0].id}`: {draft.trouble}" for draft in drafts)
        return f"{start}RegBN cannot go to any of its fusion points:{whys}"
    notes = "".join(f"\n  {note}" for note in inspection.notes)
    named = ", ".join(modality.name for modality in inspection.modalities) or "none"
    return (
        f"{start}no two of its modalities meet (modalities: {named}). If the inputs should be grouped in another way, "
        f"say how: --modality NAME=INPUT for each modality, or `modalities=` in Python.{notes}"
    )


def _title(inspection: Inspection) -> list[str]:
    return [
        f"# Rules for {inspection.model}, written from what was found in it. Nothing here is needed but `version` and",
        "# `rules`; change and delete as you like, and see what follows: regbn-surgery plan MODEL THIS_FILE",
        "version: 1",
        "",
    ]


def _modalities(inspection: Inspection) -> Iterator[str]:
    yield "# Which inputs are which modality. With `pairs: all` the first of two is f (normalised), the other g; but if"
    yield "# only one of them is causal (a position may not depend on later ones), that one is f, whatever the order."
    yield "modalities:"
    for modality in inspection.modalities:
        parts = []
        if modality.modules:
            parts.append(f"modules: {_list(modality.modules)}")
        else:
            parts.append(f"inputs: {_list(modality.inputs)}")
        if modality.slice is not None:
            dim, start, stop = modality.slice
            parts.append(f"slice: {{dim: {dim}, range: [{start}, {'null' if stop is None else stop}]}}")
        yield f"  {_text(modality.name)}: {{{', '.join(parts)}}}"
    for item in inspection.excluded[:_SHOWN]:
        yield f"  # not one: {_comment(item.name)} ({_comment(item.reason)})"


def _defaults(inspection: Inspection, facts: Facts) -> Iterator[str]:
    options = ["centre: true"]
    yield "# Means are taken off before the fit, so that no mean of g gets into f, and none uses the constraint up."
    if facts.trained is not None:
        yield f"# The weights look trained ({_comment(facts.trained)}); so they compute the same until the first step."
        options.insert(0, "normalize_output: false")
    yield f"defaults: {{regbn: {{{', '.join(options)}}}}}"
    if facts.trained is None and facts.has_pretrained_class:
        yield "# For pretrained weights (`from_pretrained`) put this line in place of the one above. With output norms"
        yield "# the outputs change at once; without them nothing changes before the first training step."
        yield "# defaults: {regbn: {normalize_output: false, centre: true}}"
        kinds = {point.kind for point in inspection.fusion_points}
        for name in presets_that_keep_outputs(kinds):
            yield f"# The preset `{name}` has these options, too (docs/presets.md)."
    yield ""


def presets_that_keep_outputs(kinds: Collection[str]) -> dict[str, Rule]:
    """The presets for points of these kinds that leave what pretrained weights compute unchanged at the start; of each
    its rule for them."""
    found: dict[str, Rule] = {}
    for name in preset_names():
        rules = Rules.load(name)
        if rules.defaults.regbn.get("normalize_output") is not False:
            continue
        for rule in rules.rules:
            if rule.match is not None and set(rule.match.kind or ()) & set(kinds):
                found.setdefault(name, rule)
    return found


def _as_preset(facts: Facts, kind: str) -> tuple[str, ...]:
    """What the preset for pretrained models says in its rule for points of a kind, where the model may be one."""
    if facts.trained is None and not facts.has_pretrained_class:
        return ()
    rules = presets_that_keep_outputs({kind}).values()
    said = [(name, getattr(rule, name)) for rule in rules for name in ("reduce", "replace")]
    return tuple(f"{name}: {value}" for name, value in said if value is not None)


def _groups(inspection: Inspection, selected: bool) -> list[tuple[FusionPoint, ...]]:
    """Points to write rules for, selected by default or not; the same call repeated over layers is one group."""
    groups: dict[tuple[str, ...], list[FusionPoint]] = {}
    for point in inspection.fusion_points:
        if point.selected_by_default == selected:
            homes = [home_name(home) for home in point.homes]
            groups.setdefault((_glob(point.id), point.kind, *homes), []).append(point)
    return [tuple(points) for points in groups.values()]


def _glob(name: str) -> str:
    return re.sub(r"[0-9]+", "*", name)


def _tried(inspection: Inspection, facts: Facts, head: str, points: tuple[FusionPoint, ...], number: int) -> _Draft:
    """The first form of a rule for these points that the planner takes."""
    trouble, meeting = "", _meeting(inspection, facts, points[0])
    plain: tuple[str, ...] = ()
    low_rank = ("regbn: {projection: low_rank}",)
    preset = _as_preset(facts, points[0].kind)
    for extra in dict.fromkeys((preset, (*preset, *low_rank), plain, low_rank)):
        lines = (*_lines(inspection, facts, points, number), *extra)
        body = "version: 1\nstrict: true\n" + head + "rules:\n" + _indented(lines) + "\n"
        try:
            made = decide(Rules.from_text(body, "rules"), inspection, None, facts)
            hazard = next(out_of_range(made.sites), None)
            if hazard is None:
                return _Draft(points, meeting, lines)
            found = text_of(hazard)
        except RegBNError as error:
            found = str(error)
        trouble = found if extra == plain else trouble
    reason = re.sub(r"^(\d+ problems: )?rules:\d+:\d+: (rule `[^`]*` (at `[^`]*`: )?)?", "", " ".join(trouble.split()))
    return _Draft(points, meeting, tuple(_lines(inspection, facts, points, number)), reason)


def _lines(inspection: Inspection, facts: Facts, points: Sequence[FusionPoint], number: int) -> list[str]:
    names = [point.id for point in points]
    glob = _glob(names[0])
    covered = [p.id for p in inspection.fusion_points if _glob(p.id) == glob]
    where = _text(glob) if len(names) > 1 and covered == names else _list(names) if len(names) > 1 else _text(names[0])
    # No rule selects a `remeeting` that does not name it.
    level = ", level: remeeting" if points[0].level == "remeeting" else ""
    lines = [f"- id: {points[0].kind}-{number}", f"  match: {{kind: {points[0].kind}{level}, point: {where}}}"]
    return [line.removeprefix("  ") for line in lines] + _direction(inspection, facts, points[0])


def _pairs(inspection: Inspection, facts: Facts, point: FusionPoint) -> list[tuple[Home, Home]]:
    """What f and g would carry at each site of a point, in this order."""
    ranks = {modality.name: rank for rank, modality in enumerate(inspection.modalities)}
    chosen, _ = directed_sites(with_causality(point, facts), None, None, True, ranks)
    return list(dict.fromkeys((site.sides[f].home, site.sides[g].home) for site, f, g in chosen))


def _meeting(inspection: Inspection, facts: Facts, point: FusionPoint) -> str:
    """What meets at a point, f before g as in its rule: `gray against colored`."""
    pairs = _pairs(inspection, facts, point)
    return ", ".join(f"{home_name(f)} against {home_name(g)}" for f, g in pairs) or spell_homes(point.homes)


def _direction(inspection: Inspection, facts: Facts, point: FusionPoint) -> list[str]:
    pairs = _pairs(inspection, facts, point)
    if len(pairs) == 1:
        ((f_home, g_home),) = pairs
        if len(f_home) == len(g_home) == 1 and f_home != g_home:
            return [f"normalize: {_text(f_home[0])}", f"against: {_text(g_home[0])}"]
    return ["pairs: all"]


def _rule(draft: _Draft) -> list[str]:
    first = draft.points[0]
    place = f" ({os.path.basename(first.source.file)}:{first.source.line})" if first.source is not None else ""
    more = f", and {len(draft.points) - 1} more like it" if len(draft.points) > 1 else ""
    about = f"  # {first.id}{more}: {draft.meeting}, in {first.owner_class}{place}, {first.level}"
    lines = ["", _comment(about)]
    if not first.selected_by_default:
        lines.append("  # Left alone unless a rule names its kind or level, as this one does.")
    if draft.trouble is None:
        return [*lines, _indented(draft.lines)]
    commented = [f"  # {line.strip()}" if i == 0 else f"  #   {line}" for i, line in enumerate(draft.lines)]
    return [*lines, f"  # Not possible as it is: {_comment(draft.trouble)}", *commented]


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"  {line}" if index == 0 else f"    {line}" for index, line in enumerate(lines))


def _unselected(inspection: Inspection, facts: Facts, written: Collection[str]) -> list[str]:
    left = [point for point in inspection.fusion_points if not point.selected_by_default and point.id not in written]
    if not left:
        return []
    lines = ["", "# Found, and only normalised where a rule names the kind or level:"]
    for p in left[:_SHOWN]:
        lines.append(f"#   {_comment(p.id)} ({p.kind}, {p.level}, {_comment(_meeting(inspection, facts, p))})")
    if len(left) > _SHOWN:
        lines.append(f"#   and {len(left) - _SHOWN} more")
    return lines


def _text(name: str) -> str:
    """A name as YAML; quoted where YAML would take it for something else."""
    if _PLAIN.fullmatch(name) and name.lower() not in _RESERVED:
        return name
    return json.dumps(name, ensure_ascii=False)


def _list(names: Sequence[str]) -> str:
    return f"[{', '.join(_text(name) for name in names)}]"


def _comment(text: str) -> str:
    """Text on one line, whatever it is."""
    return " ".join(text.split()) if not text.startswith("  #") else "  " + " ".join(text.split())
