"""The figure of the README, from the values of two experiments; make_evidence.py runs these and then this.

python benchmarks/evidence.py docs/evidence/removed.csv examples/confounder/results/confounder.csv docs/evidence.png
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "confounder"))
from write_up import draw_panel, read_csv

from regbn_surgery._intervals import mean_and_half

BATCH = 64
COLORS = {
    "before": "#8a8a8a",
    "smoother": "#d1495b",
    "frobenius": "#edae49",
    "fixed, lam 0.1": "#00798c",
    "gcv": "#1b3a6b",
}
#: Of the panels of the confounder: the setting, the shared factors, the strength in training.
SHOWN = ("end to end", 8, 0.95)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("removed", "confounder", "picture"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rough", action="store_true", help="say on the picture that the values are rough")
    arguments = parser.parse_args(argv)
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    removed, accuracy = figure.subplots(1, 2)
    draw_removed(removed, arguments.removed)
    outcomes = read_csv(arguments.confounder)
    setting, factors, rho = SHOWN
    draw_panel(accuracy, outcomes, setting, factors, rho)
    accuracy.set_title(f"Accuracy where the confounder turned useless\n({setting}, {factors} shared factors)")
    accuracy.legend(fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    if arguments.rough:
        figure.suptitle("Rough: a quick run with few seeds", color="#d1495b")
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.picture, dpi=130)
    print(f"wrote {arguments.picture}")


def draw_removed(axis: Axes, path: Path) -> None:
    """Held-out R2 against the number of shared factors, a line for each constraint, with 95 % intervals."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["batch"] == str(BATCH) and r["offset"] == "False"]
    factors = sorted({int(r["factors"]) for r in rows})
    for name, color in COLORS.items():
        cells = [[float(r["r2"]) for r in rows if (r["constraint"], int(r["factors"])) == (name, k)] for k in factors]
        means, halves = zip(*(mean_and_half(cell) for cell in cells), strict=True)
        style = "--" if name == "before" else "-"
        axis.errorbar(factors, means, yerr=halves, fmt=f"o{style}", markersize=4, capsize=2, color=color, label=name)
    axis.set_xscale("log", base=2)
    axis.set(xticks=factors, xticklabels=factors, xlabel="factors that f and g share", ylabel="R² of f' on g, held out")
    axis.set_title(f"Linear dependence that is left\n(batch {BATCH}, running W)")
    axis.grid(alpha=0.25)
    axis.legend(fontsize="small", ncols=5, loc="upper center", bbox_to_anchor=(0.45, -0.14), columnspacing=1.0)


if __name__ == "__main__":
    main()
