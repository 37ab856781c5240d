"""The experiments behind docs/results.md, sections 1 and 2, and the figure of the README: `make evidence` runs this.

python benchmarks/make_evidence.py                   # into a new folder, runs/evidence-1, -2, ...
python benchmarks/make_evidence.py --quick           # few seeds, small: rough figures, in less than a minute
python benchmarks/make_evidence.py --update-docs     # over the files that the documentation shows

All data are drawn from seeds, nothing is downloaded. What is being done is told on stderr.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "confounder"))
import confounder
import evidence
import what_is_removed

ROOT = Path(__file__).resolve().parents[1]
ROUGH = "--quick: few seeds and small data. These figures are rough; do not quote them or compare methods by them."


@dataclass(frozen=True)
class Size:
    """How much is run: options of the two experiments."""

    removed: tuple[str, ...]
    confounder: tuple[str, ...]
    takes: str


FULL = Size((), (), "about 3 minutes of processor time")
QUICK = Size(
    ("--steps", "40", "--seeds", "2"),
    ("--seeds", "2", "--rows", "1000", "--epochs", "4"),
    "less than a minute of processor time",
)


@dataclass(frozen=True)
class Places:
    """Where the results go."""

    removed: Path
    confounder: Path
    picture: Path

    @classmethod
    def in_folder(cls, folder: Path) -> Places:
        return cls(folder / "removed.csv", folder / "confounder", folder / "evidence.png")


DOCS = Places(ROOT / "docs/evidence/removed.csv", ROOT / "examples/confounder/results", ROOT / "docs/evidence.png")


def new_folder(runs: Path) -> Path:
    """The first of `evidence-1`, `evidence-2`, ... that does not exist, made."""
    number = 1
    while True:
        folder = runs / f"evidence-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run both experiments and draw the figure."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="rough figures, in less than a minute of processor time")
    into = p.add_mutually_exclusive_group()
    into.add_argument(
        "--out", type=Path, metavar="FOLDER", help="a folder that does not exist; default: a new one in runs/"
    )
    into.add_argument("--update-docs", action="store_true", help="write over the tracked files that the docs show")
    arguments = p.parse_args(argv)
    if arguments.quick and arguments.update_docs:
        p.error("--quick has rough figures, which do not go into the documentation: leave one of the two out")
    if arguments.out is not None and arguments.out.exists():
        p.error(f"--out {arguments.out} exists already: give a new folder, so that nothing is written over")
    size = QUICK if arguments.quick else FULL
    places = DOCS if arguments.update_docs else Places.in_folder(arguments.out or new_folder(ROOT / "runs"))
    if arguments.quick:
        print(ROUGH)
    start = time.process_time()
    _tell(f"three steps, {size.takes}; results go to {_near(places.picture.parent)}")
    _tell("1 of 3: how much of a dependence RegBN removes (what_is_removed.py)")
    what_is_removed.main([*size.removed, "--csv", str(places.removed)])
    _tell("2 of 3: a confounder of known strength (confounder.py)")
    confounder.main([*size.confounder, "--out", str(places.confounder)])
    _tell("3 of 3: the figure (evidence.py)")
    values = [str(places.removed), str(places.confounder / "confounder.csv"), str(places.picture)]
    evidence.main([*values, *(["--rough"] if arguments.quick else [])])
    _tell(f"done, {time.process_time() - start:.0f} s of processor time")
    if arguments.quick:
        print(ROUGH)
        (places.picture.parent / "README.md").write_text(f"{ROUGH}\n", encoding="utf-8")
    elif not arguments.update_docs:
        print('The documentation was left as it is. To renew it: make evidence ARGS="--update-docs"')
    return 0


def _tell(text: str) -> None:
    print(f"evidence: {text}", file=sys.stderr, flush=True)


def _near(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
