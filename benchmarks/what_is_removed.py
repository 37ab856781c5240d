"""How much of a dependence RegBN removes: by constraint, number of shared factors, and batch size.

python benchmarks/what_is_removed.py                       # the tables of docs/regbn.md
python benchmarks/what_is_removed.py --csv removed.csv     # and every value of them, by seed

f and g [b, 32] have unit noise and share k factors with random loadings, scaled so that about half of the variance of f
is predictable from g (0.64 with one factor, 0.47 with 16). RegBN is trained on fresh batches (momentum 0.1, without
norms) and measured in evaluation, with its running projection: held-out R2 of a least-squares fit of f' on g.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from regbn_surgery import RegBN

WIDTH = 32
FACTORS = (1, 2, 4, 8, 16)
BATCHES = (64, 256, 16)  # the last has fewer rows than g has features
WAYS: dict[str, dict[str, object]] = {
    "smoother": {"constraint": "smoother"},
    "frobenius": {"constraint": "frobenius"},
    "fixed, lam 0.1": {"constraint": "fixed", "lam": 0.1},
    "fixed, lam 1": {"constraint": "fixed", "lam": 1.0},
    "gcv": {"constraint": "gcv"},
}
HELD_OUT = 4000


@dataclass(frozen=True)
class Source:
    """Draws batches of f and g that share `factors` factors; `offset`: a mean of 1 on both, and a ReLU on g."""

    factors: int
    offset: bool
    generator: torch.Generator
    to_f: Tensor
    to_g: Tensor

    @classmethod
    def of(cls, factors: int, offset: bool, seed: int) -> Source:
        generator = torch.Generator().manual_seed(seed)
        to_f, to_g = (torch.randn(factors, WIDTH, generator=generator) * (2.0 / factors) ** 0.5 for _ in range(2))
        return cls(factors, offset, generator, to_f, to_g)

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        shared = torch.randn(size, self.factors, generator=self.generator)
        f = shared @ self.to_f + torch.randn(size, WIDTH, generator=self.generator)
        g = shared @ self.to_g + torch.randn(size, WIDTH, generator=self.generator)
        return (f + 1.0, torch.relu(g + 1.0)) if self.offset else (f, g)


def held_out(f: Tensor, g: Tensor) -> float:
    """R2 of f on g, fitted with an intercept on one half and measured on the other."""
    f, g = (x.double() - x.double().mean(0) for x in (f, g))
    half = len(f) // 2
    W = torch.linalg.lstsq(g[:half], f[:half]).solution
    return 1.0 - float((f[half:] - g[half:] @ W).square().sum() / f[half:].square().sum())


def left(way: dict[str, object], factors: int, size: int, steps: int, offset: bool, seed: int) -> tuple[float, float]:
    """Held-out R2 before and after."""
    source = Source.of(factors, offset, seed)
    regbn = RegBN(WIDTH, WIDTH, momentum=0.1, normalize_output=False, **way)
    for _ in range(steps):
        regbn(*source.draw(size))
    f, g = source.draw(HELD_OUT)
    return held_out(f, g), held_out(regbn.eval()(f, g)[0], g)


@dataclass(frozen=True)
class Left:
    """Held-out R2 of f (constraint `before`) or of f' on g, for one seed."""

    batch: int
    offset: bool
    constraint: str
    factors: int
    seed: int
    r2: float


def measured(size: int, steps: int, seeds: int, offset: bool, ways: dict[str, dict[str, object]]) -> list[Left]:
    """Every way with every number of shared factors and every seed; what was there before comes first."""
    before: list[Left] = []
    after: list[Left] = []
    for name, way in ways.items():
        print(f"batch {size}{', with a mean' * offset}: {name}", file=sys.stderr, flush=True)
        for factors in FACTORS:
            for seed in range(seeds):
                r2_before, r2_after = left(way, factors, size, steps, offset, seed)
                after.append(Left(size, offset, name, factors, seed, r2_after))
                if name == next(iter(ways)):  # it is the same for all ways
                    before.append(Left(size, offset, "before", factors, seed, r2_before))
    return before + after


def print_table(found: list[Left]) -> None:
    """A row for each constraint: means over the seeds."""
    print("| constraint | " + " | ".join(f"{k} shared" for k in FACTORS) + " |")
    print("| --- |" + " --- |" * len(FACTORS))
    for name in dict.fromkeys(item.constraint for item in found):
        cells = [[item.r2 for item in found if (item.constraint, item.factors) == (name, k)] for k in FACTORS]
        print(f"| {name} | " + " | ".join(f"{sum(cell) / len(cell):.2f}" for cell in cells) + " |")


def write_csv(found: list[Left], path: Path) -> None:
    """A row for each value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Left)])
        writer.writeheader()
        writer.writerows({**asdict(item), "r2": f"{item.r2:.4f}"} for item in found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every value, too")
    arguments = parser.parse_args(argv)
    offset = {f"{name}{', centred' * centre}": {**WAYS[name], "centre": centre}
              for name in ("smoother", "gcv") for centre in (False, True)}  # fmt: skip
    tables = [(f"Batch {size}: held-out R2 of f on g", size, False, WAYS) for size in BATCHES]
    tables.append((f"Features with a mean, g after a ReLU, batch {BATCHES[0]}", BATCHES[0], True, offset))
    everything: list[Left] = []
    for title, size, shifted, ways in tables:
        found = measured(size, arguments.steps, arguments.seeds, shifted, ways)
        print(f"\n{title}\n")
        print_table(found)
        everything += found
    if arguments.csv is not None:
        write_csv(everything, arguments.csv)
        print(f"\nwrote {arguments.csv}")


if __name__ == "__main__":
    main()
