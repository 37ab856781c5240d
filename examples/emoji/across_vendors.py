"""Emoji and their names: a picture branch and a name branch, trained on one vendor's drawings, tested on another's.

python across_vendors.py --download           fetch the package once (25 MB); writes results/emoji.{csv,md,png}
python across_vendors.py --seeds 2            two seeds; the package is in --data
python across_vendors.py --resume             go on with a run that was stopped
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from branches import TwoBranches
from emoji_set import NAME_WIDTH, VENDORS, PackageError, emoji_package, read_package
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tables_of_sweep import draw, to_markdown
from trial import BATCH, Trial

from regbn_surgery import RegBNError, Sweep, sweep

#: What `sweep` tells: what comes next, how many networks are done, and of how many.
Observer = Callable[[str, int, int], None]
HERE = Path(__file__).parent
RULES = ("picture_smoother", "picture_centred", "picture_gcv", "name_smoother", "name_centred", "name_gcv")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for something that cannot be used, 130 for Ctrl-C."""
    p = parser()
    arguments = p.parse_args(argv)
    if arguments.seeds < 1 or arguments.epochs < 1:
        p.error("at least 1 seed and 1 epoch")
    if arguments.vendor == arguments.other:
        p.error(f"--vendor and --other are both {arguments.vendor}; give two")
    console = Console(stderr=True, soft_wrap=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the layers are small, and sums split otherwise differ in their last bits
    try:
        files = run(arguments, console)
    except (PackageError, RegBNError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on after the last finished network.", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(threads)
    for file in files:
        print(f"wrote {file}")
    return 0


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--download", action="store_true", help="fetch the package first, if it is not in --data")
    p.add_argument("--data", type=Path, default=HERE / "data", metavar="DIR", help="of the package; default data")
    p.add_argument("--vendor", choices=VENDORS, default="google", help="whose drawings to train on; default google")
    p.add_argument("--other", choices=VENDORS, default="twitter", help="whose to test on as well; default twitter")
    p.add_argument("--seeds", type=int, default=8, help="how many, from 0 on; default 8")
    p.add_argument("--epochs", type=int, default=12, help="default 12")
    p.add_argument("--resume", action="store_true", help="take up the finished networks of a run that was stopped")
    p.add_argument("--out", type=Path, default=HERE / "results", help="default: results beside this")
    return p


def run(arguments: argparse.Namespace, console: Console) -> list[Path]:
    """Train everything with every seed; the files written."""
    file = emoji_package(arguments.data, arguments.download, console)
    emoji = read_package(file, (arguments.vendor, arguments.other))
    # Finished networks lie apart by what they were trained on and how long, so that --resume cannot mix them.
    work = arguments.out / "runs" / f"{arguments.vendor}-{arguments.other}-{arguments.epochs}"
    trial = Trial(emoji, arguments.vendor, arguments.other, arguments.epochs)
    with progress(console) as observe:
        found = compared(trial, range(arguments.seeds), work, arguments.resume, observe)
    files = [arguments.out / f"emoji.{end}" for end in ("csv", "md", "png")]
    files[0].write_text(found.to_csv(), encoding="utf-8")
    table = to_markdown(found)
    files[1].write_text(table, encoding="utf-8")
    draw(found, files[2])
    print(table)
    return files


def compared(trial: Trial, seeds: Sequence[int], work: Path, resume: bool, observe: Observer) -> Sweep:
    """No RegBN, the norms alone, and each of `RULES`; all of these have the same norms, so one control is enough."""
    files = [HERE / "rules" / f"{name}.yaml" for name in RULES]
    example = trial.emoji.drawings[trial.vendor][:BATCH], trial.emoji.hashed_names[:BATCH]

    def build() -> TwoBranches:
        return TwoBranches(len(trial.emoji.categories), NAME_WIDTH)

    with_control = sweep(
        build, example, rules=files[:1], train=trial, seeds=seeds, out=work, resume=resume, observe=observe
    )
    others = sweep(
        build, example, rules=files[1:], train=trial, seeds=seeds, out=work, resume=True, observe=observe, control=False
    )
    rest = [result for result in others.results if result.variant in RULES]
    return Sweep((*sorted(with_control.results, key=lambda result: result.variant in RULES), *rest))


@contextmanager
def progress(console: Console) -> Iterator[Observer]:
    """What `sweep` tells: a bar on a terminal, a line for each network elsewhere."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("networks")

        def observe(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)
            if not console.is_terminal:
                console.print(f"[{done}/{total}] {what}", highlight=False, markup=False)

        yield observe


if __name__ == "__main__":
    sys.exit(main())
