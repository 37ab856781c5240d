"""What notebooks show for an inspection, a plan and a surgery: small HTML tables that need no style of the page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape

from .._types import Inspection, Plan
from .diff import HostLike, diff_of, whys_of
from .shapes import meeting_texts, owner_text, padding_text, projection_text, side_text
from .tables import collapsed, cost_text, tier_text
from .words import all_notes, count_text

_MUTED = "opacity:.65"
_LINES = {"+": "background:rgba(46,160,67,.18)", "-": "background:rgba(248,81,73,.18)", "@": _MUTED}


def inspection_to_html(found: Inspection) -> str:
    """The modalities, a row for each fusion point, and the notes folded away."""
    points = count_text(len(found.fusion_points), "fusion point")
    head = f"<b>{escape(found.model)}</b>: {points}<br>modalities: " + escape(
        ", ".join(f"{m.name} ({', '.join(m.roots)})" for m in found.modalities) or "none"
    )
    rows = []
    for point, repeats in collapsed(found.fusion_points):
        name = f"<b>{escape(point.id)}</b>" + (f"<br>{_muted(f'and {repeats} alike')}" if repeats else "")
        kind = f"{escape(point.kind)}, {escape(point.level)}"
        if not point.selected_by_default:
            kind += f"<br>{_muted('only if a rule names it')}"
        where = f"{os.path.basename(point.source.file)}:{point.source.line}" if point.source else ""
        meets = "<br>".join(escape(text) for text in meeting_texts(point))
        costs = "<br>".join(escape(cost) for cost in dict.fromkeys(cost_text(site) for site in point.sites))
        place = f"{escape(where)}<br>{_muted('in ' + point.owner_class)}"
        rows.append((name, kind, place, meets, costs))
    table = _table(("fusion point", "kind, level", "where", "what meets", "what RegBN would hold"), rows)
    return _whole(head, table, _folded(all_notes(found)))


def plan_to_html(plan: Plan) -> str:
    """The modules that go in, and the decision on every fusion point with its reason."""
    normalised = sum(decision.action == "normalize" for decision in plan.decisions)
    points = count_text(len(plan.decisions), "fusion point")
    head = f"<b>{count_text(len(plan.sites), 'RegBN module')}</b> to put in; {normalised} of {points} normalised"
    sites = [
        (
            f"<b>{escape(site.path)}</b>" + (f"<br>{_muted('at ' + site.point)}" if site.point is not None else ""),
            *(
                escape(side_text(side, site.reduce))
                + (f"<br>{_muted(padding_text(site, letter))}" if padding_text(site, letter) else "")
                for letter, side in (("f", site.f), ("g", site.g))
            ),
            escape(projection_text(site)),
            escape(f"{site.reduce}, replaces {'f and g' if site.replace == 'both' else 'f only'}")
            + (f"<br>{_muted(tier_text(site.tier))}" if site.tier else ""),
        )
        for site in plan.sites
    ]
    decisions = [(escape(d.point), escape(d.action), escape(d.reason)) for d in plan.decisions]
    return _whole(
        head,
        _table(("RegBN module", "f (normalised)", "g", "projection W", "how"), sites),
        _table(("fusion point", "decision", "why"), decisions),
        _folded((*plan.warnings, *plan.notes)),
    )


def surgery_to_html(model: str, hosts: Sequence[HostLike], note: str = "") -> str:
    """Each rewritten host with its modules, and its code before and after, folded away; `note` instead of them."""
    if note:
        return _whole(escape(note))
    parts = [f"<b>{escape(model)}</b>: {count_text(sum(len(h.sites) for h in hosts), 'RegBN module')} in "
             f"{count_text(len(hosts), 'host')}"]  # fmt: skip
    for host in hosts:
        names = ", ".join(site.path for site in host.sites)
        title = f"<b>{escape(owner_text(host.host))}</b> ({escape(host.host_class)}), {escape(host.way)}: "
        title += escape("; ".join([names, *whys_of(host)]))
        diff = diff_of(host) if host.before else host.after
        parts.append(f"<details><summary>{title}</summary>{_code(diff)}</details>" if diff else title)
    return _whole(*parts)


def _code(diff: str) -> str:
    lines = "".join(
        f'<span style="display:block;{_LINES.get(line[:1], "")}">{escape(line) or " "}</span>'
        for line in diff.splitlines()
    )
    return f'<pre style="font-size:85%">{lines}</pre>'


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """`rows` are HTML already."""
    body = "".join(
        f"<tr>{''.join(f'<td style=text-align:left;vertical-align:top>{c}</td>' for c in row)}</tr>" for row in rows
    )
    if not body:
        return ""
    head = "".join(f"<th style=text-align:left>{escape(header)}</th>" for header in headers)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _folded(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<details><summary>{count_text(len(notes), 'note')}</summary><ul>{items}</ul></details>"


def _muted(text: str) -> str:
    return f"<span style={_MUTED}>{escape(text)}</span>"


def _whole(*parts: str) -> str:
    return "<div>" + "".join(f"<div>{part}</div>" for part in parts if part) + "</div>"
