"""A confounder of known strength: what does RegBN do against it, beside what else one could do?

python confounder.py                 # ten seeds; writes results/confounder.{csv,md,png}
python confounder.py --seeds 3       # the seeds 0 to 2

Preprocessing is measured at three strengths of the confounding (rho), the network end to end at the last.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from network import end_to_end
from removing import METHODS, preprocessed
from world import draw as draw_world
from write_up import Outcome, draw, gains_to_markdown, to_markdown, write_csv

RHOS = (0.5, 0.8, 0.95)
FACTORS = (1, 8)
TEST = 4000


def main(argv: Sequence[str] | None = None) -> int:
    """Run it all and write the three files."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=10, help="how many, from 0 on; default 10")
    p.add_argument("--rows", type=int, default=2000, help="training rows; default 2000")
    p.add_argument("--epochs", type=int, default=8, help="of the network; default 8")
    p.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="default: results beside this")
    arguments = p.parse_args(argv)
    if arguments.seeds < 1 or arguments.rows < 130 or arguments.epochs < 1:
        p.error("at least 1 seed, 130 rows (two batches) and 1 epoch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the layers are small, and sums split otherwise differ in their last bits
    try:
        outcomes = run(arguments.seeds, arguments.rows, arguments.epochs)
    finally:
        torch.set_num_threads(threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    files = [arguments.out / f"confounder.{end}" for end in ("csv", "md", "png")]
    write_csv(outcomes, files[0])
    table = f"{gains_to_markdown(outcomes, RHOS[-1])}\n{to_markdown(outcomes)}"
    files[1].write_text(table, encoding="utf-8")
    draw(outcomes, RHOS[-1], files[2])
    print(table)
    for file in files:
        print(f"wrote {file}")
    return 0


def run(seeds: int, rows: int, epochs: int) -> list[Outcome]:
    """Every method on the same worlds; tables by setting, factors and rho in this order."""
    rows -= rows % 64 if rows % 64 == 1 else 0  # a last batch of one row has no statistics
    found: dict[tuple[str, int, float], list[Outcome]] = {}
    for seed in range(seeds):
        print(f"seed {seed} ({seed + 1} of {seeds})", file=sys.stderr, flush=True)
        for factors in FACTORS:
            for rho in RHOS:
                world = draw_world(factors, rho, seed, rows, TEST)
                for method in METHODS:
                    settings = {"preprocessing": preprocessed(method, world)}
                    if rho == RHOS[-1]:
                        settings["end to end"] = end_to_end(method, world, seed, epochs)
                    for setting, measured in settings.items():
                        here = found.setdefault((setting, factors, rho), [])
                        here += [Outcome(setting, factors, rho, method, seed, m, v) for m, v in measured.items()]
    return [outcome for key in sorted(found, key=lambda k: (k[0] != "preprocessing", *k[1:])) for outcome in found[key]]


if __name__ == "__main__":
    sys.exit(main())
