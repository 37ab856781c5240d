"""What a sweep has found: plain records, and their tables with paired differences."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .._errors import RegBNError
from .._intervals import mean_and_half
from ._alike import words_of

#: The model as it is, and the word behind the name of rules whose projection is left out.
NONE = "none"
CONTROL = "norms only"


class SweepError(RegBNError):
    """A sweep was asked for what cannot be compared, or its folder holds something else."""


@dataclass(frozen=True)
class SweepResult:
    """One measure of one trained model."""

    variant: str
    seed: int
    measure: str
    value: float


@dataclass(frozen=True)
class Sweep:
    """All results of a sweep, in the order of its variants. `str` is the Markdown table.

    `same` holds (variant, other) for each variant that is the same model as an earlier one and has its values.
    """

    results: tuple[SweepResult, ...]
    same: tuple[tuple[str, str], ...] = ()

    @property
    def variants(self) -> tuple[str, ...]:
        """`none`, then each rules file and its control."""
        return tuple(dict.fromkeys(result.variant for result in self.results))

    @property
    def measures(self) -> tuple[str, ...]:
        """What the training function returned, by name."""
        return tuple(dict.fromkeys(result.measure for result in self.results))

    def values(self, variant: str, measure: str) -> tuple[float, ...]:
        """One value for each seed, in the order of the seeds."""
        found = [r for r in self.results if (r.variant, r.measure) == (variant, measure)]
        return tuple(r.value for r in sorted(found, key=lambda r: r.seed))

    def differences(self, variant: str, other: str, measure: str) -> tuple[float, ...]:
        """`variant` minus `other` with the same seed, one for each seed."""
        pairs = zip(self.values(variant, measure), self.values(other, measure), strict=True)
        return tuple(a - b for a, b in pairs)

    def control_of(self, variant: str) -> str | None:
        """The variant with the norms of `variant` alone; None where there is none."""
        name = f"{variant} {CONTROL}"
        return name if name in self.variants else None

    def to_csv(self) -> str:
        """A row for each result: variant, seed, measure, value."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["variant", "seed", "measure", "value"])
        writer.writerows([r.variant, r.seed, r.measure, repr(r.value)] for r in self.results)
        return out.getvalue()

    def to_markdown(self) -> str:
        """Means over the seeds, and paired differences to no RegBN and to the control, with 95 % intervals."""
        count = len({result.seed for result in self.results})
        lines: list[str] = []
        over = "of one seed" if count == 1 else f"mean ± half of the 95 % interval over {count} seeds"
        for measure in self.measures:
            lines += [
                f"**{measure}**, {over}",
                "",
                f"| rules | {measure} | minus {NONE} | minus {CONTROL} |",
                "| --- | ---: | ---: | ---: |",
            ]
            for variant in self.variants:
                control = self.control_of(variant)
                cells = [
                    number(self.values(variant, measure)),
                    "" if variant == NONE else number(self.differences(variant, NONE, measure), "+"),
                    "" if control is None else number(self.differences(variant, control, measure), "+"),
                ]
                lines.append(f"| {variant} | " + " | ".join(cells) + " |")
            lines.append("")
        lines += words_of(self.same)
        if count < 2:
            lines.append("One seed proves nothing: another one can turn the order round.")
        return "\n".join(lines).rstrip("\n") + "\n"

    def __str__(self) -> str:
        return self.to_markdown()


def number(values: Sequence[float], sign: str = "") -> str:
    """`0.723 ± 0.011`, to two digits of the interval; four digits without one."""
    mean, half = mean_and_half(values)
    if math.isnan(half) or half == 0.0:
        return f"{mean:{sign}.4g}" + ("" if math.isnan(half) else " ± 0")
    digits = max(0, 1 - math.floor(math.log10(half)))
    return f"{mean:{sign}.{digits}f} ± {half:.{digits}f}"
