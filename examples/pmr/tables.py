"""The comparison of finished runs as CSV and Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from measure import MODALITIES, Measurement, write_rows

from regbn_surgery import Sweep, SweepResult
from regbn_surgery._intervals import mean_and_half

CONTROL = "norms only"
READ_ON = (
    "RegBN helps where what the sides share is a confounder, and not the label, and where the head sees f' alone. Here "
    "colour goes with the label, and the head sees both sides. What was measured: docs/results.md, sections 2 to 4. "
    "When it helps and when not: README.md."
)

SPLITS = ("test", "train")


@dataclass(frozen=True)
class Result:
    """Loss and accuracy of one modality of one run on one split, after its last epoch."""

    variant: str
    seed: int
    epoch: int
    split: str
    modality: str
    loss: float
    accuracy: float


def measures_of(history: Sequence[Measurement], epoch: int) -> dict[str, float]:
    """A run after `epoch`, the last. Not its best: choosing by the test accuracy would be reading the answers."""
    last = [m for m in history if m.epoch == epoch]
    return {f"{m.split} {m.modality} {what}": getattr(m, what) for m in last for what in ("loss", "accuracy")}


def results_of(swept: Sweep, epoch: int) -> list[Result]:
    """The rows of a sweep whose runs gave `measures_of`."""
    found = {(r.variant, r.seed, r.measure): r.value for r in swept.results}
    runs = dict.fromkeys((r.seed, r.variant) for r in sorted(swept.results, key=lambda r: r.seed))
    return [
        Result(
            variant,
            seed,
            epoch,
            split,
            modality,
            *(found[variant, seed, f"{split} {modality} {what}"] for what in ("loss", "accuracy")),
        )
        for seed, variant in runs
        for split in ("train", "test")
        for modality in MODALITIES
    ]


def values(results: Sequence[Result], variant: str, split: str, modality: str) -> list[float]:
    """The accuracies of a variant, one for each seed."""
    return [r.accuracy for r in results if (r.variant, r.split, r.modality) == (variant, split, modality)]


def write_results(results: Sequence[Result], path: Path) -> None:
    """One CSV row for each run, split and modality."""
    write_rows([asdict(r) for r in results], [f.name for f in fields(Result)], path)


def to_markdown(results: Sequence[Result]) -> str:
    """Accuracies in percent: the mean over the seeds ± their standard deviation (of a sample)."""
    head = [f"{split}: {modality}" for split in SPLITS for modality in MODALITIES]
    lines = ["| RegBN | " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(head)]
    for variant in dict.fromkeys(r.variant for r in results):
        cells = [_cell(values(results, variant, s, m)) for s in SPLITS for m in MODALITIES]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def paired(results: Sequence[Result]) -> Sweep:
    """Joint test accuracy in percent, for differences with the same seed.

    `late_control` is the control of `late`, and of every other `late_...` that has none of its own.
    """
    joint = [r for r in results if (r.split, r.modality) == ("test", "joint")]
    names = dict.fromkeys(r.variant for r in joint)
    shown = [(r.variant.replace("_control", f" {CONTROL}"), r) for r in joint]
    for name in names:
        control = f"{name.partition('_')[0]}_control"
        if name != control and "_" in name and f"{name}_control" not in names:
            shown += [(f"{name} {CONTROL}", r) for r in joint if r.variant == control]
    return Sweep(tuple(SweepResult(name, r.seed, "joint test accuracy", 100 * r.accuracy) for name, r in shown))


def verdicts(found: Sweep) -> list[str]:
    """What the differences to the controls mean, a line for each rules file that has one, and where to read on."""
    (measure,) = found.measures
    lines = []
    for variant in found.variants:
        control = found.control_of(variant)
        if control is not None:
            lines.append(_verdict(variant, found.differences(variant, control, measure)))
    return [*lines, READ_ON] if lines else []


def _verdict(variant: str, gains: Sequence[float]) -> str:
    """`gains` are points of accuracy over the control, one for each seed."""
    mean, half = mean_and_half(gains)
    many = len(gains) > 1
    size = f"{abs(mean):.1f}" + (f" ± {half:.1f}" if many else "") + f" points {'below' if mean < 0 else 'above'}"
    head = f"{variant} is {size} its control, which has the same norms and subtracts nothing"
    if not many:
        return f"{head}: in one seed, which can be chance."
    if abs(mean) <= half:
        return f"{head}: {len(gains)} seeds show no effect of the subtraction on these data."
    effect = "took away more than it gave" if mean < 0 else "helped, beyond what the norms do,"
    return f"{head}: the subtraction {effect} on these data."


def _cell(accuracies: Sequence[float]) -> str:
    percent = [100 * a for a in accuracies]
    mean = f"{statistics.mean(percent):.1f}"
    return mean if len(percent) < 2 else f"{mean} ± {statistics.stdev(percent):.1f}"
