"""Thousands of random models: `python -m tests.random_models 5000 [first seed] [--points]`.

Prints what fails, by its cause. `--points` compares the fusion points only, which is a tenth of the work.
"""

from __future__ import annotations

import re
import sys
import time
import traceback
import warnings
from collections import defaultdict

import torch

from ._check import check_all, check_points
from ._more_meetings import generate


def main(count: int, first: int, points_only: bool) -> int:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    failures: dict[str, list[int]] = defaultdict(list)
    examples: dict[str, str] = {}
    start, points = time.perf_counter(), 0
    for seed in range(first, first + count):
        generated = generate(seed)
        points += generated.points.total()
        try:
            (check_points if points_only else check_all)(generated)
        except Exception as error:  # noqa: BLE001  whatever fails is what this command is for
            cause = _cause(error)
            failures[cause].append(seed)
            print(f"seed {seed}: {cause}", flush=True)  # noqa: T201
            examples.setdefault(cause, "".join(traceback.format_exception_only(error))[:1500])
    seconds = time.perf_counter() - start
    for cause, seeds in sorted(failures.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds)} x {cause}: seeds {seeds[:12]}\n    {examples[cause]}")  # noqa: T201
    failed = sum(map(len, failures.values()))
    print(f"{count} models, {points} points, {failed} failed, {seconds:.0f} s")  # noqa: T201
    return 1 if failed else 0


def _cause(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: " + re.sub(r"\d+", "#", re.sub(r"`[^`]*`", "`..`", text))[:110]


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "--points"]
    numbers = [int(argument) for argument in given] + [1000, 0][len(given) :]
    sys.exit(main(numbers[0], numbers[1], "--points" in sys.argv))
