"""The summary of a rewritten model as a table, and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from .shapes import owner_text
from .tables import broken_path, plain_table
from .words import count_text

if TYPE_CHECKING:
    from .._summary import RegBNSummary, Summary

SCHEMA_VERSION = 1


def summary_view(found: Summary, width: int = 80) -> RenderableType:
    """A line with the answer, and a row for each RegBN with its host."""
    share = "" if found.time_share is None else f", {found.time_share:.1%} of the time of a call"
    head = Text.assemble(
        (found.model, "bold"),
        f": {count_text(len(found.rows), 'RegBN')}, {found.memory_share:.1%} of the memory of weights and state{share}",
    )
    timed = found.seconds is not None
    headers = ("RegBN", "host", "parameters", "state", *(("time",) if timed else ()))
    table = plain_table(*headers)
    for row in found.rows:
        host = Text(f"{broken_path(owner_text(row.host), width)}\n{row.host_class}\n")
        host.append(f"{row.host_parameters:,} parameters", style="dim")
        state = Text(f"{row.buffer_elements:,} values\n{bytes_text(row.state_bytes)}")
        cells = [Text(broken_path(row.name, width), style="bold"), host, Text(f"{row.parameters:,}"), state]
        table.add_row(*cells, *([_time(row, found)] if timed else []))
    size = f"{found.parameters:,} parameters in all, {bytes_text(found.state_bytes)} with buffers"
    mode = "training" if found.training else "evaluation"
    run = f"; a call takes {_ms(found.seconds)} in {mode}, best of {found.calls}" if found.seconds is not None else ""
    return Group(head, Text(""), table, Text(f"\n{size}{run}", style="dim"))


def _time(row: RegBNSummary, found: Summary) -> Text:
    spent, whole = row.seconds or 0.0, found.seconds or 0.0
    return Text(f"{_ms(spent)}\n{spent / whole if whole > 0 else 0.0:.1%}")


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
        }
        for row in found.rows
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "model": found.model,
        "parameters": found.parameters,
        "state_bytes": found.state_bytes,
        "memory_share": found.memory_share,
        "training": found.training,
        "seconds": found.seconds,
        "time_share": found.time_share,
        "sites": rows,
    }
