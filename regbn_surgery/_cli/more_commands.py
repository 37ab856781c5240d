"""The commands beside the two main ones: `diagnose` and `completion`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import click

from .._codes import kept
from .completing import complete_model, complete_rules
from .destination import PICTURES, output_options
from .options import ModelRequest, ignore_option, modality_option, model_options
from .output import (
    debuggable,
    finding,
    message,
    next_step,
    progress,
    quiet_stdout,
    write_bytes,
    write_text,
    write_views,
)
from .with_regbn import load_rules


@click.command(
    short_help="Measure on your data how dependent branches are.",
    epilog="Example: regbn-surgery diagnose model.py:build --data data.py:loader --batches 8 --rules rules.yaml",
)
@model_options
@modality_option
@click.option(
    "--data",
    required=True,
    metavar="MODULE:NAME",
    shell_complete=complete_model,
    help="Batches for the model: an iterable such as a DataLoader, or a function that returns one.",
)
@click.option("--batches", default=8, show_default=True, type=click.IntRange(1), help="How many batches to take.")
@click.option(
    "--rules",
    metavar="RULES",
    shell_complete=complete_rules,
    help="A rules file or preset: measure at its sites, before and after RegBN.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Random seed: weights, data, folds.")
@click.option("--steps", type=click.IntRange(1), help="Training steps to fit RegBN for; default: until it settles.")
@output_options(
    "table",
    "json",
    *PICTURES,
    drawn_by=("matplotlib", "The formats table and json do not need it"),
    form_help=" svg and png are bar plots.",
)
@ignore_option
@debuggable
def diagnose(
    request: ModelRequest,
    modalities: dict[str, Any],
    data: str,
    batches: int,
    rules: str | None,
    seed: int,
    steps: int | None,
    form: str,
    output: str | None,
    ignore: tuple[str, ...],
) -> None:
    """Measure on batches of your own data how dependent the branches of MODEL are where they meet.

    0 means independent: RegBN has nothing to remove there. Shared directions are pairs of directions of f and g that go
    together. With --rules, each RegBN is fitted on the same batches and
    measured again; the rest of the model stays as it is. A batch is what the model is called with, or a pair of that
    and a target. MODEL is as for `inspect`; take trained weights (--checkpoint), since random ones show little.
    A MODEL that contains RegBN already is measured as it is, before and after each, without --rules.
    """
    parsed = None if rules is None else load_rules(rules, modalities)
    with progress("loading torch, the model and the data"), quiet_stdout():
        import torch

        from .._probe import diagnose as run
        from .loading import load_data

        torch.manual_seed(seed)
        model, inputs = request.load(weights=True, section=None if parsed is None else parsed.inputs)
        source = load_data(data)
    with progress(f"running {type(model).__name__} on {batches} batches"), quiet_stdout():
        given = None if parsed is not None else modalities or None
        found = run(model, source, batches, parsed, inputs, given, seed=seed, steps=steps)
    found = replace(found, notes=kept(found.notes, ignore), alarms=kept(found.alarms, ignore))
    _write(found, form, output)
    if not found.rows:
        finding("nothing was measured: no site")
    if found.as_it_is:
        return
    if rules is None:
        next_step(
            "measure what RegBN leaves: add --rules, with a file from", "init", *request.command, "-o", "rules.yaml"
        )
    else:
        next_step(
            "compare training with and without it",
            "sweep", *request.with_rules, "--rules", rules, "--train", "MODULE:FUNCTION",
        )  # fmt: skip


def _write(found: Any, form: str, output: str | None) -> None:
    from .._report import dependence

    if form == "json":
        write_text(json.dumps(dependence.dependence_to_dict(found), indent=2, ensure_ascii=False), output)
    elif form == "table":
        write_views(lambda width: [dependence.dependence_view(found, width)], output)
    else:
        write_bytes(dependence.dependence_plot(found, form), output)


_WHERE = {
    "bash": "~/.bashrc: source <(regbn-surgery completion bash)",
    "zsh": "~/.zshrc: source <(regbn-surgery completion zsh)",
    "fish": "~/.config/fish/completions/regbn-surgery.fish",
}


@click.command(
    short_help="Print a shell's completion script.", epilog="Example: regbn-surgery completion bash >> ~/.bashrc"
)
@click.argument("shell", type=click.Choice(list(_WHERE)))
@debuggable
def completion(shell: str) -> None:
    """Print the script by which SHELL completes commands and options of regbn-surgery."""
    from click.shell_completion import get_completion_class

    from .commands import cli

    made = get_completion_class(shell)
    assert made is not None, "the choices are shells that click knows"
    write_text(made(cli, {}, "regbn-surgery", "_REGBN_SURGERY_COMPLETE").source(), None)
    if sys.stdout.isatty():  # a shell that reads the script at every start should not say this each time
        message(f"Next, put this where your shell reads it: {_WHERE[shell]}")


MORE_COMMANDS = (diagnose, completion)
