"""Inspections and plans as rich tables that fit 80 columns and use more where there are more."""

from __future__ import annotations

import itertools
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .._codes import code_of, is_minor, text_of
from .._types import Decision, FusionPoint, Inspection, Plan, PlannedSite, Side, Site
from .shapes import home_text, meeting_texts, mib_text, padding_text, projection_text, side_text
from .words import FEW, all_notes, count_text

#: Repeats of one call over layers are shown once from this number on.
_COLLAPSE_FROM = 4
#: So many pairs of streams are named in the first line.
_PAIRS = 3
#: Where notes that are left out can be had: as readers of `print(...)` and of a command need to be told.
IN_PYTHON = '`to_dict()["notes"]` has'
IN_THE_SHELL = "`--verbose` shows"


def inspection_view(
    inspection: Inspection, width: int = 80, verbose: bool = False, *, rest: str = IN_PYTHON
) -> RenderableType:
    """What was found: the modalities, a table of fusion points, and the first notes (`verbose`: all of them).

    `rest` says where the reader finds the others: `IN_PYTHON` or `IN_THE_SHELL`.
    """
    points = inspection.fusion_points
    head = Text.assemble((inspection.model, "bold"), f": {count_text(len(points), 'fusion point')}{_who_meet(points)}")
    modalities = [f"{item.name} ({', '.join(item.roots)})" for item in inspection.modalities]
    parts: list[RenderableType] = [head, Text("modalities: " + (", ".join(modalities) or "none"))]
    if points:
        parts += [Text(""), _points_table(points, width)]
    return Group(*parts, *notes_view(all_notes(inspection), verbose, rest))


def _who_meet(points: Sequence[FusionPoint]) -> str:
    """`, where gray meets colored`: the first pairs of streams."""
    found = [pair for point in points for pair in itertools.combinations(point.homes, 2)]
    first_order = {frozenset(pair): pair for pair in reversed(found)}  # who meets whom, in either order
    once = dict.fromkeys(first_order[frozenset(pair)] for pair in found)
    pairs = [f"{home_text(first)} meets {home_text(second)}" for first, second in once]
    return f", where {_first_of(pairs)}" if pairs else ""


def _first_of(pairs: Sequence[str]) -> str:
    """The pairs, or the first of many and how many more there are: two at least, since one could be named instead."""
    if len(pairs) <= _PAIRS + 1:
        return ", ".join(pairs)
    return f"{', '.join(pairs[:_PAIRS])} and {len(pairs) - _PAIRS} more pairs"


def _points_table(points: Sequence[FusionPoint], width: int) -> Table:
    table = plain_table("fusion point", "what meets", "where")
    for point, repeats in collapsed(points):
        name = Text(broken_path(point.id, width), style="bold" if point.selected_by_default else "dim")
        name.append(f"\n{point.kind}, {point.level}", style="not bold")
        if not point.selected_by_default:
            name.append("\nonly if a rule names it", style="dim")
        if repeats:
            name.append(f"\nand {repeats} alike", style="dim")
        table.add_row(name, _meeting(point), _where(point))
    return table


def broken_path(path: str, width: int) -> str:
    """A dotted path in lines of about a third of `width`, broken after dots where it can be."""
    longest = width // 3
    lines = [""]
    for segment in path.split("."):
        if lines[-1] and len(lines[-1]) + len(segment) > longest:
            lines.append("")
        while len(segment) > longest:
            lines[-1:] = [segment[:longest], ""]
            segment = segment[longest:]
        lines[-1] += segment + "."
    return "\n".join(lines)[:-1]


def collapsed(points: Sequence[FusionPoint]) -> Iterator[tuple[FusionPoint, int]]:
    """Each point with the number of further ones of its group that it stands for."""
    sizes: dict[str, int] = {}
    for point in points:
        if point.group:
            sizes[point.group] = sizes.get(point.group, 0) + 1
    seen: set[str] = set()
    for point in points:
        if sizes.get(point.group, 0) < _COLLAPSE_FROM:
            yield point, 0
        elif point.group not in seen:
            seen.add(point.group)
            yield point, sizes[point.group] - 1


def _meeting(point: FusionPoint) -> Text:
    text = Text("\n".join(meeting_texts(point)))
    for cost in dict.fromkeys(cost_text(site) for site in point.sites):
        text.append(f"\n{cost}", style="dim")
    return text


def cost_text(site: Site) -> str:
    """What RegBN would hold there; the same whichever side is f."""
    if site.obstacle is not None:
        return "no place for RegBN (see notes)"
    f, g = site.sides
    if f.channels is None or g.channels is None:
        return "channel axis unknown"
    planned = PlannedSite("", site.host, "", None, f, g, site.reduce, "both", site)
    return f"W {mib_text(*planned.projection_shape)} ({site.reduce})"


def _where(point: FusionPoint) -> str:
    place = f"{os.path.basename(point.source.file)}:{point.source.line}\n" if point.source is not None else ""
    return f"{place}in {point.owner_class}"


#: How a site goes in, by the number that plans keep.
_TIERS = {1: "by a hook on arguments", 2: "in the host's own code", 3: "in its own code, under a mode"}


def tier_text(tier: int | None) -> str:
    """How a site goes in; empty where that is not known."""
    return _TIERS.get(tier or 0, "")


def plan_view(plan: Plan, width: int = 80, verbose: bool = False, *, rest: str = IN_PYTHON) -> RenderableType:
    """What will be done: the modules that go in, every decision, and the first notes (`verbose`, `rest`: see above)."""
    head = f"{count_text(len(plan.sites), 'RegBN module')} to put in; {what_is_normalised(plan)}"
    pairs = dict.fromkeys(f"{home_text(site.f.home)} against {home_text(site.g.home)}" for site in plan.sites)
    head += f": {_first_of(tuple(pairs))}" if pairs else ""
    if fails_on_a_copy(plan):
        head = f"{count_text(len(plan.sites), 'RegBN module')} planned, but the surgery fails (see RB106)"
    parts: list[RenderableType] = [Text(head)]
    if plan.sites:
        parts += [Text(""), sites_table(plan.sites, width)]
    if plan.decisions:
        table = plain_table("fusion point", "decision", "why")
        for decision in plan.decisions:
            style = {"normalize": "green", "skip": "yellow", "leave": "dim"}[decision.action]
            name = Text(broken_path(decision.point, width))
            table.add_row(name, Text(decision.action, style=style), _why(decision))
        parts += [Text(""), table]
    return Group(*parts, *notes_view((*plan.warnings, *plan.notes), verbose, rest))


def fails_on_a_copy(plan: Plan) -> bool:
    """Whether the surgery, tried on a copy of the model, has failed."""
    return "RB106" in map(code_of, plan.warnings)


def what_is_normalised(plan: Plan) -> str:
    """How many of the fusion points are normalised, and how many pairs beside them: a pair is at no fusion point."""
    points = sum(decision.action == "normalize" for decision in plan.decisions)
    pairs = sum(site.pair is not None for site in plan.sites)
    of_points = f"{points} of {count_text(len(plan.decisions), 'fusion point')} normalised"
    if not pairs:
        return of_points
    told = f"{count_text(pairs, 'pair')} of layers or inputs normalised"
    return f"{told}, and {of_points.removesuffix(' normalised')}" if points else told


def _why(decision: Decision) -> Text:
    """The reason, and why each other rule did not decide; a point that no rule matches has them in its reason."""
    text = Text(decision.reason)
    for rule, reason in decision.others if decision.action != "leave" else ():
        text.append(f"\nnot `{rule}`: {reason}", style="dim")
    return text


def sites_table(sites: Iterable[PlannedSite], width: int = 80) -> Table:
    """One row for each RegBN module: where it goes, what it normalises against what, and how large it is."""
    narrow = width * 7 // 8
    table = plain_table("RegBN module", "f (normalised), g", "projection W")
    for site in sites:
        name = Text(broken_path(site.path, narrow), style="bold")
        if site.point is not None:
            name.append("\n" + broken_path(f"at {site.point}", narrow), style="not bold")
        sides = [f"{letter} {side_text(side, site.reduce)}" for letter, side in (("f", site.f), ("g", site.g))]
        places = site.pair or tuple(_taken(side) for side in (site.f, site.g))
        left_out = (padding_text(site, "f"), padding_text(site, "g"))
        sides = ["\n  ".join(filter(None, lines)) for lines in zip(sides, left_out, places, strict=True)]
        returned = "replaces f and g" if site.replace == "both" else "replaces f only"
        returned += ", fit: running" if site.options.get("fit") == "running" else ""
        how = f"\n{_TIERS[site.tier]}" if site.tier in _TIERS else ""
        table.add_row(name, Text("\n".join(sides)), Text(f"{projection_text(site)}\n{site.reduce}, {returned}{how}"))
    return table


def _taken(side: Side) -> str:
    """Which tensor a side is, where it has a name: "Linear `gate`", "argument `context`"; operands have none."""
    return side.anchor if "`" in side.anchor else ""


def plain_table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="underline")
    for index, header in enumerate(headers):
        table.add_column(Text(header), overflow="fold", no_wrap=index == 0)  # paths are broken at dots beforehand
    return table


def _near(note: str) -> str:
    """The note with its paths from here, or from where packages are installed: whole ones fill a line and say less."""
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    for folder in (*installed, os.getcwd()):
        if os.path.dirname(folder) != folder:  # not the root
            note = note.replace(folder + os.sep, "")
    return note


def notes_view(notes: Sequence[str], verbose: bool = False, rest: str = IN_PYTHON) -> Iterator[RenderableType]:
    """The notes with their codes; without `verbose` at most the first ten, and none that is minor."""
    shown = list(notes) if verbose else [note for note in notes if not is_minor(note)][:FEW]
    left = len(notes) - len(shown)
    if shown:
        yield Text("\nnotes:")
    for note in shown:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(Text(code_of(note) or "-", style="dim"), Text(_near(text_of(note))))
        yield Padding(grid, (0, 0, 0, 1))
    if left:
        more = count_text(left, "more note" if shown else "note")
        yield Text(f"\n{more}: {rest} {'it' if left == 1 else 'them'}", style="dim")
