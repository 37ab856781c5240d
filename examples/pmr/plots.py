"""The pictures: curves of runs side by side, and bars of what they ended with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from measure import MODALITIES, Measurement, pick
from tables import Result, values

COLORS = {"joint": "#1b3a6b", "gray": "#8a8a8a", "colored": "#d1495b"}
CHANCE = 0.1
TITLES = {"none": "without RegBN"}


def plot_curves(histories: Mapping[str, Sequence[Measurement]], title: str, path: Path) -> None:
    """One column for each variant, accuracy above loss, on shared axes; one colour for each modality."""
    figure = Figure(figsize=(1.2 + 3.9 * len(histories), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(histories), sharex=True, sharey="row", squeeze=False)
    for column, (name, history) in enumerate(histories.items()):
        axes[0][column].set_title(TITLES.get(name, f"RegBN: {name}"))
        _draw(axes[0][column], history, "accuracy")
        _draw(axes[1][column], history, "loss")
        axes[0][column].axhline(CHANCE, color="black", linewidth=0.6, linestyle=":")
        axes[1][column].set_xlabel("epoch")
        axes[1][column].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0][0].set(ylabel="accuracy", ylim=(0, 1.02))
    axes[1][0].set_ylabel("cross-entropy (nats)")
    # The loss of a branch that contradicts the other grows without bound; on a log axis all stay readable.
    axes[1][0].set_yscale("log")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(MODALITIES), fontsize="small")
    figure.suptitle(title)
    _save(figure, path)


def _draw(axis: Axes, history: Sequence[Measurement], what: str) -> None:
    for modality in MODALITIES:
        for split, style in (("test", "-"), ("train", "--")):
            line = pick(history, split, modality)
            marker = "o" if len(line) < 2 else None
            epochs, heights = [m.epoch for m in line], [getattr(m, what) for m in line]
            axis.plot(epochs, heights, style, color=COLORS[modality], label=f"{modality}, {split}", marker=marker)
    axis.grid(alpha=0.25)


def plot_comparison(results: Sequence[Result], title: str, path: Path) -> None:
    """Test accuracy after the last epoch: a bar for the mean over seeds, a dot for each seed."""
    variants = list(dict.fromkeys(r.variant for r in results))
    figure = Figure(figsize=(2.2 + 1.4 * len(variants), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    width = 0.8 / len(MODALITIES)
    for i, modality in enumerate(MODALITIES):
        for position, variant in enumerate(variants):
            dots = values(results, variant, "test", modality)
            x = position + (i - 1) * width
            label = modality if position == 0 else None
            axis.bar(x, sum(dots) / len(dots), width * 0.92, color=COLORS[modality], alpha=0.8, label=label)
            axis.plot([x] * len(dots), dots, "o", color="black", markersize=3)
    axis.axhline(CHANCE, color="black", linewidth=0.6, linestyle=":", label="chance")
    axis.set(ylabel="test accuracy", ylim=(0, 1.02), xticks=range(len(variants)))
    axis.set_xticklabels([TITLES.get(v, v) for v in variants])
    axis.set_title(title, fontsize="medium")
    figure.legend(loc="outside lower center", ncols=len(MODALITIES) + 1, fontsize="small")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
