"""The plot of a sweep: a dot for each seed, and the mean with its interval."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from .._intervals import mean_and_half
from .dependence import PlotError

if TYPE_CHECKING:
    from .._sweep import Sweep


def sweep_plot(found: Sweep, form: str) -> bytes:
    """As "svg" or "png": a panel for each measure, a row for each variant. Raises `PlotError` without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError(
            "the plot needs matplotlib: pip install 'regbn_surgery[viz]'. The table and the CSV do not need it"
        ) from error
    figure = Figure(figsize=(2.0 + 3.2 * len(found.measures), 1.2 + 0.4 * len(found.variants)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(found.measures), sharey=True, squeeze=False)[0]
    for panel, measure in zip(panels, found.measures, strict=True):
        for row, variant in enumerate(found.variants):
            values = found.values(variant, measure)
            mean, half = mean_and_half(values)
            panel.plot(values, [row] * len(values), "o", markersize=3, color="#8a8a8a")
            panel.errorbar([mean], [row], xerr=[0.0 if half != half else half], fmt="D", markersize=5, color="#1b3a6b")
        panel.set_title(measure, fontsize=9)
        panel.grid(alpha=0.25, axis="x")
    panels[0].set_yticks(range(len(found.variants)), found.variants)
    panels[0].invert_yaxis()
    figure.supxlabel("a dot for each seed; the mean and its 95 % interval", fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format=form, dpi=130)
    return out.getvalue()
