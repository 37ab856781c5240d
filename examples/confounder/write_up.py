"""The outcomes as CSV, as Markdown with paired differences to the control, and as a figure."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measuring import MEASURES
from removing import CONTROL

from regbn_surgery._intervals import mean_and_half

SETTINGS = ("preprocessing", "end to end")
COLORS = {"f alone": "#1b3a6b", "fused": "#d1495b"}


@dataclass(frozen=True)
class Outcome:
    """One measure of one method on one world."""

    setting: str
    factors: int
    rho: float
    method: str
    seed: int
    measure: str
    value: float


Outcomes = Sequence[Outcome]


def write_csv(outcomes: Outcomes, path: Path) -> None:
    """A row for each outcome."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Outcome)])
        writer.writeheader()
        writer.writerows({**asdict(o), "value": f"{o.value:.4f}"} for o in outcomes)


def read_csv(path: Path) -> list[Outcome]:
    """What `write_csv` has written."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Outcome(r["setting"], int(r["factors"]), float(r["rho"]), r["method"], int(r["seed"]), r["measure"],
                    float(r["value"]))
            for r in csv.DictReader(file)
        ]  # fmt: skip


def by_seed(outcomes: Outcomes, setting: str, factors: int, rho: float, method: str, measure: str) -> list[float]:
    """The values of one cell, in the order of the seeds."""
    cell = (setting, factors, rho, method, measure)
    found = [o for o in outcomes if (o.setting, o.factors, o.rho, o.method, o.measure) == cell]
    return [o.value for o in sorted(found, key=lambda o: o.seed)]


def to_markdown(outcomes: Outcomes) -> str:
    """A table for each setting, number of factors and rho: means, and the paired differences of `f alone`."""
    parts = []
    for setting, factors, rho in dict.fromkeys((o.setting, o.factors, o.rho) for o in outcomes):
        seeds = len({o.seed for o in outcomes})
        lines = [
            f"{setting}, {factors} shared, rho {rho}, {seeds} seeds",
            "",
            "| method | " + " | ".join(MEASURES) + f" | f alone minus {CONTROL} | fused minus {CONTROL} |",
            "| --- |" + " ---: |" * (len(MEASURES) + 2),
        ]
        for method in dict.fromkeys(o.method for o in outcomes):
            found = {m: by_seed(outcomes, setting, factors, rho, method, m) for m in MEASURES}
            cells = [_number(values) for values in found.values()]
            for measure in ("f alone", "fused"):
                control = by_seed(outcomes, setting, factors, rho, CONTROL, measure)
                gains = [a - b for a, b in zip(found[measure], control, strict=True)]
                cells.append("" if method == CONTROL else _number(gains, sign="+"))
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def gains_to_markdown(outcomes: Outcomes, rho: float) -> str:
    """The table of docs/results.md: what each method gains over the norms alone at `rho`, in points."""
    shown = [m for m in dict.fromkeys(o.method for o in outcomes) if m not in ("nothing", "truth", CONTROL)]
    names = [name.removeprefix("RegBN ").replace("regress out, label kept", "label kept") for name in shown]
    lines = [f"| in points of test accuracy | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
    for setting, factors in dict.fromkeys((o.setting, o.factors) for o in outcomes if o.rho == rho):
        for measure in ("f alone", "fused"):
            control = by_seed(outcomes, setting, factors, rho, CONTROL, measure)
            cells = []
            for method in shown:
                values = by_seed(outcomes, setting, factors, rho, method, measure)
                mean, half = mean_and_half([100 * (a - b) for a, b in zip(values, control, strict=True)])
                cells.append(f"{mean:+.1f}" + ("" if half != half else f" ± {half:.1f}"))
            lines.append(f"| {setting}, {factors} shared: {measure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(values: Sequence[float], sign: str = "") -> str:
    mean, half = mean_and_half(values)
    return f"{mean:{sign}.3f}" + ("" if half != half else f" ± {half:.3f}")


def draw(outcomes: Outcomes, rho: float, path: Path) -> None:
    """A panel for each setting and number of factors: both accuracies of each method, with 95 % intervals."""
    panels = list(dict.fromkeys((o.setting, o.factors) for o in outcomes if o.rho == rho))
    figure = Figure(figsize=(1.8 + 2.9 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (setting, factors) in zip(axes, panels, strict=True):
        draw_panel(axis, outcomes, setting, factors, rho)
        axis.set_title(f"{setting}, {factors} shared", fontsize="medium")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=130)


def draw_panel(axis: Axes, outcomes: Outcomes, setting: str, factors: int, rho: float) -> None:
    """A row for each method: a point and a 95 % interval for each accuracy; a line at the control."""
    methods = list(dict.fromkeys(o.method for o in outcomes))
    for shift, (measure, color) in zip((-0.13, 0.13), COLORS.items(), strict=True):
        found = [mean_and_half(by_seed(outcomes, setting, factors, rho, m, measure)) for m in methods]
        rows = [i + shift for i in range(len(methods))]
        means, halves = zip(*found, strict=True)
        axis.errorbar(means, rows, xerr=halves, fmt="o", markersize=4, color=color, label=measure)
        axis.axvline(means[methods.index(CONTROL)], color=color, linewidth=0.7, linestyle=":")
    axis.set(yticks=range(len(methods)), yticklabels=methods, xlabel="test accuracy")
    if not axis.yaxis_inverted():  # once for axes that are shared
        axis.invert_yaxis()
    axis.grid(alpha=0.25, axis="x")
