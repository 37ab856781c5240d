"""The table and the figure of the README, made of the sweep's results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from regbn_surgery import Sweep
from regbn_surgery._intervals import mean_and_half
from regbn_surgery._report.comparison import sweep_plot

CONTROL = "norms only"
#: In the figure; the table has all of them.
DRAWN = ("fused", "fused, other vendor", "picture features", "picture features, other vendor")


def to_markdown(found: Sweep) -> str:
    """The accuracies of the control and what each variant gains over it; then R2 of all."""
    return f"{gains_to_markdown(found)}\n{dependence_to_markdown(found)}"


def gains_to_markdown(found: Sweep) -> str:
    """Accuracy in percent: the control, and paired differences to it in points, ± half of the 95 % interval."""
    compared = [variant for variant in found.variants if not variant.endswith(CONTROL)]
    lines = [
        f"| accuracy, in percent | {CONTROL} | {' | '.join(_shown(v) for v in compared)} |",
        "| --- |" + " ---: |" * (1 + len(compared)),
    ]
    for measure in (m for m in found.measures if not m.startswith("R2")):
        cells = [_number([100 * value for value in found.values(_control(found), measure)], 1)]
        for variant in compared:
            gains = found.differences(variant, _control(found), measure)
            cells.append(_number([100 * gain for gain in gains], 1, "+"))
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def dependence_to_markdown(found: Sweep) -> str:
    """How well the features of one side are predicted from those of the other, before and after."""
    measures = [measure for measure in found.measures if measure.startswith("R2")]
    lines = [f"| held-out R2 | {' | '.join(m.removeprefix('R2 ') for m in measures)} |"]
    lines.append("| --- |" + " ---: |" * len(measures))
    for variant in found.variants:
        lines.append(f"| {_shown(variant)} | {' | '.join(_number(found.values(variant, m), 2) for m in measures)} |")
    return "\n".join(lines) + "\n"


def _control(found: Sweep) -> str:
    """The one control: all rules files have the same norms."""
    (control,) = (variant for variant in found.variants if variant.endswith(CONTROL))
    return control


def _shown(variant: str) -> str:
    return CONTROL if variant.endswith(CONTROL) else variant.replace("_", ", ")


def _number(values: Sequence[float], digits: int, sign: str = "") -> str:
    mean, half = mean_and_half(values)
    return f"{mean:{sign}.{digits}f}" + ("" if half != half else f" ± {half:.{digits}f}")


def draw(found: Sweep, path: Path) -> None:
    """A panel for each measure of `DRAWN`."""
    drawn = [replace(result, variant=_shown(result.variant)) for result in found.results if result.measure in DRAWN]
    path.write_bytes(sweep_plot(Sweep(tuple(drawn)), "png"))
