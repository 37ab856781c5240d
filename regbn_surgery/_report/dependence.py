"""The dependence of branches on each other as a table with bars, as JSON, and as a bar plot."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from .._errors import RegBNError
from .shapes import home_text
from .tables import broken_path, notes_view, plain_table
from .words import count_text

if TYPE_CHECKING:
    from .._diagnosis import Dependence
    from .._probe import Diagnosis, Measured

SCHEMA_VERSION = 1
_BAR = 20  # characters for a dependence of 1
_EIGHTHS = " ▏▎▍▌▋▊▉"
#: What is measured: in words, and how it is had.
MEASURES: tuple[tuple[str, str, Callable[[Dependence], float]], ...] = (
    ("explained_variance", "explained variance", lambda d: d.explained_variance),
    ("linear_cka", "linear CKA", lambda d: d.linear_cka),
    ("distance_correlation", "distance correlation", lambda d: d.distance_correlation),
)


class PlotError(RegBNError):
    """A plot cannot be drawn here."""


def dependence_view(found: Diagnosis, width: int = 80) -> RenderableType:
    """A row for each site and measure: the figure and its bar, before and, where there was one, after RegBN."""
    samples = max((row.before.samples for row in found.rows), default=0)
    head = Text.assemble(
        (found.model, "bold"),
        f": how much of f goes with g, on {count_text(samples, 'sample')} in ",
        count_text(found.batches, "batch", "batches"),
    )
    table = plain_table("site", "measure", "0 = independent, 1 = f is g")
    for row in found.rows:
        name = Text(broken_path(row.site, width), style="bold")
        name.append(f"\nf {home_text(row.f)}\ng {home_text(row.g)}", style="not bold")
        words, bars = Text(), Text()
        for _, word, value in MEASURES:
            for when, figures in (("before", row.before), ("after", row.after)):
                if figures is None:
                    continue
                words.append(f"{word} {when}\n" if row.after is not None else f"{word}\n")
                bars.append(f"{value(figures):6.3f} ").append(
                    _bar(value(figures)) + "\n", style="green" if when == "after" else "cyan"
                )
        words.append("shared directions\n")
        bars.append(_directions(row) + "\n")
        if row.running_to_batch is not None:
            words.append("running / batch subtraction\n")
            bars.append(f"{row.running_to_batch:6.3f}\n")
        words.rstrip()
        bars.rstrip()
        table.add_row(name, words, bars)
    alarms = [part for text in found.alarms for part in (Text(""), Text(text, style="bold red"))]
    return Group(head, *alarms, Text(""), table, *notes_view(found.notes, verbose=True))


def _directions(row: Measured) -> str:
    after = "" if row.after is None else f" before, {row.after.shared_directions} after"
    return f"{row.before.shared_directions:6d}{after}"


def _bar(value: float) -> str:
    eighths = round(max(0.0, min(1.0, value)) * _BAR * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def dependence_to_dict(found: Diagnosis) -> dict[str, Any]:
    """The content as plain JSON types."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": found.model,
        "batches": found.batches,
        "sites": [
            {
                "site": row.site,
                "fusion_point": row.point,
                "f": list(row.f),
                "g": list(row.g),
                "samples": row.before.samples,
                "before": _figures(row.before),
                "after": None if row.after is None else _figures(row.after),
                "running_to_batch": row.running_to_batch,
            }
            for row in found.rows
        ],
        "alarms": list(found.alarms),
        "notes": list(found.notes),
    }


def _figures(figures: Dependence) -> dict[str, float]:
    return {key: value(figures) for key, _, value in MEASURES} | {"shared_directions": figures.shared_directions}


def dependence_plot(found: Diagnosis, form: str) -> bytes:
    """A bar plot as "svg" or "png": one panel for each measure. Raises `PlotError` without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError(
            "the bar plot needs matplotlib: pip install 'regbn_surgery[viz]'. The table and JSON do not need it"
        ) from error
    figure = Figure(figsize=(10, 1.6 + 0.5 * max(1, len(found.rows))), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    figure.suptitle(f"{found.model}: how much of f goes with g")
    for panel, (_, word, value) in zip(panels, MEASURES, strict=True):
        _panel(panel, found.rows, value)
        panel.set_title(word, fontsize=9)
    panels[0].set_yticks(
        range(len(found.rows)), [f"{row.site}\n{home_text(row.f)} on {home_text(row.g)}" for row in found.rows]
    )
    panels[0].invert_yaxis()
    if any(row.after is not None for row in found.rows):
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format=form, dpi=130)
    return out.getvalue()


def _panel(panel: Any, rows: tuple[Measured, ...], value: Callable[[Dependence], float]) -> None:
    both = any(row.after is not None for row in rows)
    height = 0.38 if both else 0.6
    panel.barh([i - height / 2 * both for i in range(len(rows))], [value(row.before) for row in rows], height,
               label="before", color="#0072b2")  # fmt: skip
    if both:
        after = [(i, value(row.after)) for i, row in enumerate(rows) if row.after is not None]
        panel.barh([i + height / 2 for i, _ in after], [x for _, x in after], height, label="after", color="#c0265f")
    panel.axvline(0, color="black", linewidth=0.6)
    panel.set_xlim(min(0.0, *(value(d) for row in rows for d in (row.before, row.after) if d is not None), -0.02), 1)
    panel.tick_params(labelsize=8)
