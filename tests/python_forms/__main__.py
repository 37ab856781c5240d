"""Thousands of models in many forms of Python: `python -m tests.python_forms 1000 --seed 0`.

Prints each failure with its seed, forms and source, and at the end the forms by the share of their models that fail.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ._check import PARTS, OracleError, check
from ._generate import Generated, generate
from ._limits import limit


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.python_forms", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--without", action="append", default=[], metavar="TEXT", help="leave out forms with this text")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="only models with these forms")
    parser.add_argument("--brief", action="store_true", help="one line for each failure")
    parser.add_argument("--values", action="store_true", help="compare values only, not how often each module ran")
    parser.add_argument("--usual", action="store_true", help="only call as in the example, and do nothing later")
    parser.add_argument("--limits", action="store_true", help="compare what `_limits` leaves out, too")
    parser.add_argument("--trace", action="store_true", help="print the traceback of each failure")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tried: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    total = left_out = 0
    for seed in range(given.seed, given.seed + given.count):
        generated = generate(seed)
        if given.usual:
            generated = replace(generated, later="the same model", ways=generated.ways[:1])
        text = "\n".join(described(generated))
        if any(word in text for word in given.without) or not all(word in text for word in given.only):
            continue
        if not given.limits and limit(generated):
            left_out += 1
            continue
        total += 1
        tried.update(described(generated))
        error = failure(generated, PARTS[1:] if given.values else PARTS)
        if error is None:
            continue
        failed.update(described(generated))
        causes[type(error).__name__ + (f" from {type(error.__cause__).__name__}" if error.__cause__ else "")] += 1
        print_failure(generated, error, given.brief, given.trace)
    print_summary(tried, failed, causes, total)
    print(f"{left_out} left out: see _limits.py")  # noqa: T201
    return 1 if failed else 0


def described(generated: Generated) -> list[str]:
    """Return the forms of a model, with where its source stands and what is done with it later."""
    return [*dict.fromkeys(generated.forms), f"home: {generated.home}", f"later: {generated.later}"]


def failure(generated: Generated, parts: Sequence[str]) -> Exception | None:
    """Check one model and return what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            check(generated, Path(folder), parts)
        except Exception as error:  # noqa: BLE001  whatever fails is what this command is for
            return error
    return None


def print_failure(generated: Generated, error: Exception, brief: bool, trace: bool) -> None:
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, OracleError):
        words += f": {error.__cause__!r}"
    if brief:
        print(f"seed {generated.seed}: {' '.join(words.split())[:300]}", flush=True)  # noqa: T201
    else:
        print(f"{'=' * 100}\n{generated}\n{words}\n", flush=True)  # noqa: T201
    if trace:
        traceback.print_exception(error)


def print_summary(tried: Counter[str], failed: Counter[str], causes: Counter[str], total: int) -> None:
    for form in sorted(failed, key=lambda form: (-failed[form] / tried[form], form)):
        print(f"{failed[form]:4} of {tried[form]:4} fail: {form}")  # noqa: T201
    for cause, count in causes.most_common():
        print(f"{count} x {cause}")  # noqa: T201
    print(f"{total} models, {causes.total()} failed")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
