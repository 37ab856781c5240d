"""The dependence of branches on each other as a table with bars, as JSON, and as a bar plot."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .._errors import RegBNError
from .shapes import home_text
from .tables import notes_view
from .words import count_text

if TYPE_CHECKING:
    from .._diagnosis import Dependence
    from .._probe import Diagnosis, Measured

SCHEMA_VERSION = 1
_BAR = 20  # characters for a dependence of 1, fewer where there are few columns
_LABEL = 27  # characters of the longest label
_EIGHTHS = " ▏▎▍▌▋▊▉"
#: Behind the name of a model that carried RegBN: what "before" and "after" are then.
AS_IT_IS = " as it is, before and after its own RegBN in evaluation (nothing was fitted)"
#: What is measured: in words, and how it is had.
MEASURES: tuple[tuple[str, str, Callable[[Dependence], float]], ...] = (
    ("explained_variance", "explained variance", lambda d: d.explained_variance),
    ("linear_cka", "linear CKA", lambda d: d.linear_cka),
    ("distance_correlation", "distance correlation", lambda d: d.distance_correlation),
)


class PlotError(RegBNError):
    """A plot cannot be drawn here."""


def dependence_view(found: Diagnosis, width: int = 80) -> RenderableType:
    """For each site its name and sides, and below them a line for each measure: its figure and its bar, before and,
    where there was one, after RegBN. A figure stands beside its own label whatever the names and the width are."""
    samples = max((row.before.samples for row in found.rows), default=0)
    head = Text.assemble(
        (found.model, "bold"),
        AS_IT_IS if found.as_it_is else "",
        f": how well g predicts f, on {count_text(samples, 'sample')} in ",
        count_text(found.batches, "batch", "batches"),
        "\n0 = independent, 1 = f is g" if found.rows else "",
    )
    parts: list[RenderableType] = [head]
    parts += [part for text in found.alarms for part in (Text(""), Text(text, style="bold red"))]
    for row in found.rows:
        name = Text(overflow="fold").append(row.site, style="bold")
        name.append(f"\nf {home_text(row.f)}\ng {home_text(row.g)}", style="not bold")
        parts += [Text(""), name, Padding(_measures(row, width), (0, 0, 0, 2))]
    return Group(*parts, *notes_view(found.notes, verbose=True))


def _measures(row: Measured, width: int) -> Table:
    """One line for each measure of a site: as a table, so that a label and its figure cannot come apart."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=_LABEL, no_wrap=True)
    table.add_column(no_wrap=True)
    longest = max(1, min(_BAR, width - _LABEL - 12))  # beside the indent, two gaps and the figure
    measured = [(figures, f" {when}" if row.after is not None else "", style)
                for when, figures, style in (("before", row.before, "cyan"), ("after", row.after, "green"))
                if figures is not None]  # fmt: skip
    for _, word, value in MEASURES:
        for figures, when, style in measured:
            figure = Text(f"{value(figures):6.3f} ").append(_bar(value(figures), longest), style=style)
            table.add_row(word + when, figure)
    for figures, when, _ in measured:
        table.add_row(f"shared directions{when}", f"{figures.shared_directions:6d}")
    if row.running_to_batch is not None:
        table.add_row("running / batch subtraction", f"{row.running_to_batch:6.3f}")
    return table


def _bar(value: float, longest: int) -> str:
    eighths = round(max(0.0, min(1.0, value)) * longest * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def dependence_to_dict(found: Diagnosis) -> dict[str, Any]:
    """The content as plain JSON types."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": found.model,
        "batches": found.batches,
        "as_it_is": found.as_it_is,
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
    figure.suptitle(f"{found.model}{AS_IT_IS if found.as_it_is else ''}: how well g predicts f")
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
