"""The summary of a rewritten model as a table, and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from .shapes import owner_text
from .tables import broken_path, plain_table
from .words import count_text

if TYPE_CHECKING:
    from .._summary import HostSummary, RegBNSummary, Summary

SCHEMA_VERSION = 1


def summary_view(found: Summary, width: int = 80) -> RenderableType:
    """A line with the answer; a row for each host with what is its own, below it its RegBN; and the total."""
    share = "" if found.time_share is None else f", {_share(found.time_share, found.time_spread)} of the time of a call"
    head = Text.assemble(
        (found.model, "bold"),
        f": {count_text(len(found.rows), 'RegBN')}, {found.memory_share:.1%} of the memory of weights and state{share}",
    )
    timed = found.seconds is not None
    table = plain_table("module", "parameters", "buffers", "memory", *(("time",) if timed else ()))
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for host in found.hosts:
        name = Text(broken_path(owner_text(host.path), width)).append(f"\n{host.class_name}", style="dim")
        table.add_row(name, *_counts(host.parameters, host.buffer_elements, host.state_bytes))
        for row in found.rows:
            if row.host == host.path:
                name = Text(f"  {row.name.removeprefix(host.path).lstrip('.')}", style="bold")
                counts = _counts(row.parameters, row.buffer_elements, row.state_bytes)
                table.add_row(name, *counts, *([_time(row, found)] if timed else []))
    rest = _rest(found)
    if any(rest):
        table.add_row(Text("the rest of the model"), *_counts(*rest))
    total = _counts(found.parameters, found.buffer_elements, found.state_bytes)
    spent = [_ms(found.seconds)] if found.seconds is not None else []
    table.add_row(Text("total"), *total, *spent, style="bold")
    mode = "training" if found.training else "evaluation"
    run = f"\nTimes of a call in {mode}, median of {found.calls}." if timed else ""
    return Group(head, Text(""), table, *([Text(run, style="dim")] if run else []))


def _counts(parameters: int, elements: int, size: int) -> tuple[str, str, str]:
    return f"{parameters:,}", f"{elements:,}", bytes_text(size)


def _rest(found: Summary) -> tuple[int, int, int]:
    """What belongs to no host and no RegBN."""
    parts: tuple[HostSummary | RegBNSummary, ...] = (*found.hosts, *found.rows)
    return (
        found.parameters - sum(part.parameters for part in parts),
        found.buffer_elements - sum(part.buffer_elements for part in parts),
        found.state_bytes - sum(part.state_bytes for part in parts),
    )


def _time(row: RegBNSummary, found: Summary) -> str:
    spent, whole = row.seconds or 0.0, found.seconds or 0.0
    return f"{_ms(spent)} ({_share(spent / whole if whole > 0 else 0.0, row.spread)})"


def _share(share: float, spread: float | None) -> str:
    """`43.0% ± 1.2%`; `< noise` where it varies by more than it is."""
    if spread is None:
        return f"{share:.1%}"
    return "< noise" if share <= spread else f"{share:.1%} ± {spread:.1%}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"


def bytes_text(size: int) -> str:
    """`812 B`, `36.5 KiB`, `1.20 GiB`."""
    if size < 1024:
        return f"{size} B"
    value, unit = size / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}"


def summary_to_dict(found: Summary) -> dict[str, Any]:
    """The content as plain JSON types."""
    rows = [
        {
            "name": row.name,
            "host": row.host,
            "host_class": row.host_class,
            "host_parameters": row.host_parameters,
            "parameters": row.parameters,
            "buffer_elements": row.buffer_elements,
            "state_bytes": row.state_bytes,
            "seconds": row.seconds,
            "spread": row.spread,
        }
        for row in found.rows
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "model": found.model,
        "parameters": found.parameters,
        "buffer_elements": found.buffer_elements,
        "state_bytes": found.state_bytes,
        "memory_share": found.memory_share,
        "training": found.training,
        "seconds": found.seconds,
        "time_share": found.time_share,
        "time_spread": found.time_spread,
        "hosts": [
            {
                "path": host.path,
                "class": host.class_name,
                "parameters": host.parameters,
                "buffer_elements": host.buffer_elements,
                "state_bytes": host.state_bytes,
            }
            for host in found.hosts
        ],
        "sites": rows,
    }
