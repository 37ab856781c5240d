"""`sweep`: a user's model with several rules, their controls and none, with several seeds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .completing import complete_file, complete_model, complete_rules
from .destination import check_file
from .options import ModelRequest, model_options, rules_modality_option
from .output import debuggable, message, next_step, write_bytes

if TYPE_CHECKING:
    from .._rules import Rules


def _seeds(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in value.replace(",", " ").split())
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0:
        raise click.BadParameter(f"{value!r}: write whole numbers from 0 on, as in 0,1,2")
    return seeds


@click.command(
    short_help="Train your model with several rules and compare.",
    epilog="Example: regbn-surgery sweep model.py:build --rules late.yaml --rules early --train train.py:train",
)
@model_options
@rules_modality_option
@click.option(
    "--rules",
    "rules",
    required=True,
    multiple=True,
    metavar="RULES",
    shell_complete=complete_rules,
    help="A rules file or preset; once for each.",
)
@click.option(
    "--train",
    "train",
    required=True,
    metavar="MODULE:NAME",
    shell_complete=complete_model,
    help="A function train(model, seed) that trains the model and returns measures by name, or one number.",
)
@click.option("--seeds", default="0,1,2", show_default=True, callback=_seeds, help="Random seeds, as in 0,1,2.")
@click.option(
    "-o",
    "--output",
    default="sweep",
    show_default=True,
    metavar="FOLDER",
    shell_complete=complete_file,
    help="Folder for the table, the CSV, the plot and the finished runs.",
)
@click.option("--force", is_flag=True, help="Overwrite the table, the CSV and the plot in FOLDER.")
@click.option("--resume", is_flag=True, help="Take the finished runs that are in FOLDER, and go on.")
@click.option("--no-control", is_flag=True, help="Leave out the controls, which have the norms of RegBN alone.")
@debuggable
def sweep(
    request: ModelRequest,
    modalities: dict[str, Any],
    rules: tuple[str, ...],
    train: str,
    seeds: tuple[int, ...],
    output: str,
    force: bool,
    resume: bool,
    no_control: bool,
) -> None:
    """Train MODEL with each rules file, with its control and without RegBN, with each seed, and compare.

    The control has the norms of RegBN and no projection. The table shows differences with the same seed and their 95 %
    intervals. MODEL is as for `inspect`; it is made anew for each run, so name a factory or class.
    """
    _check_folder(output, force=force or resume)
    variants = _by_name(rules, modalities)
    from .._sweep import SweepError
    from .._sweep import sweep as run
    from .loading import load_object

    function = load_object(train, "the training function is", "write `package.module:name` or `path/to/file.py:name`")
    if not callable(function):
        raise SweepError(f"--train {train}: found a {type(function).__name__}, not a function train(model, seed).")
    try:
        found = run(
            lambda: request.load(weights=True), rules=variants, train=function, seeds=seeds, out=output, resume=resume,
            control=not no_control, observe=_tell,
        )  # fmt: skip
    except KeyboardInterrupt:
        message(f"stopped; finished runs are kept in {output}. The same command with --resume continues")
        raise
    click.echo(str(found), nl=False)
    table = Path(output) / "sweep.md"
    for file in (Path(output) / "sweep.csv", table):
        message(f"wrote {file}")
    _plot(found, Path(output))
    next_step(f"read {table}: a difference whose interval leaves out 0 is chance in one of 20 comparisons")


def _by_name(rules: tuple[str, ...], modalities: dict[str, Any]) -> dict[str, Rules]:
    """The rules by the names that the table gives them, with `modalities` in those that name none themselves.

    Raises click.UsageError for two of the same name; RulesError for a file with problems, and where no rules lack
    modalities.
    """
    from .._rules import Rules

    found: dict[str, Rules] = {}
    for item in rules:
        name = Path(item).stem
        if name in found:
            raise click.UsageError(f"--rules {item}: another one is called {name!r}, too; rename one file")
        found[name] = Rules.load(item)
    open_ones = [name for name, item in found.items() if not item.modalities] or list(found)
    return found | {name: found[name].with_modalities(modalities) for name in open_ones}


_RESULTS = ("sweep.csv", "sweep.md", "sweep.png")


def _check_folder(output: str, *, force: bool) -> None:
    """Raises click.UsageError for a folder that cannot be made or written to, or that holds results of a sweep."""
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise click.UsageError(f"-o {output}: this is a file; give the name of a folder")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise click.UsageError(f"-o {output}: no permission to write in {there}")
    if folder.is_dir() and not any(folder.glob("runs/*.json")):  # finished runs are refused, or gone on with, below
        for name in _RESULTS:
            check_file(str(folder / name), force)


def _tell(what: str, done: int, total: int) -> None:
    message(f"[{done}/{total}] {what}")


def _plot(found: Any, folder: Path) -> None:
    """Write the picture, which is told like any file."""
    from .._report.comparison import sweep_plot
    from .._report.dependence import PlotError

    try:
        content = sweep_plot(found, "png")
    except PlotError as error:  # hours of training should not end in an error for want of a picture
        message(f"no plot: {error}")
        return
    write_bytes(content, str(folder / "sweep.png"))
