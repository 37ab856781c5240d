"""The command `verify`: which streams come to each RegBN in calls other than the example."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from .._codes import code_of, kept
from .._errors import CaptureError, InputsError
from .completing import complete_model, complete_rules
from .destination import output_options
from .options import ModelRequest, ignore_option, model_options, rules_modality_option
from .output import debuggable, finding, message, next_step, progress, quiet_stdout, write_text, write_views
from .with_regbn import load_rules, model_with_regbn

if TYPE_CHECKING:
    from .._surgery import Verification


@click.command(
    short_help="Check in other calls what each RegBN is given.",
    epilog="Example: regbn-surgery verify model.py:build rules.yaml --data data.py:calls",
)
@model_options
@rules_modality_option
@click.argument("rules", required=False, shell_complete=complete_rules)
@click.option(
    "--data",
    metavar="MODULE:NAME",
    shell_complete=complete_model,
    help="Further calls: an iterable of what the model is called with, or a function that returns one.",
)
@click.option("--calls", default=8, show_default=True, type=click.IntRange(1), help="How many of them to take.")
@click.option("--train", is_flag=True, help="Run the calls in training mode; without it, in evaluation.")
@output_options("text", "json")
@ignore_option
@debuggable
def verify(
    request: ModelRequest,
    modalities: dict[str, Any],
    rules: str | None,
    data: str | None,
    calls: int,
    train: bool,
    form: str,
    output: str | None,
    ignore: tuple[str, ...],
) -> None:
    """Put RegBN into MODEL where RULES say, and say for each RegBN which modalities its f and g carry.

    MODEL is as for `inspect`; leave RULES out for one that contains RegBN already. Its example inputs are
    checked, if there are any; --data adds calls that may go another way through the model: another order,
    a missing modality, another batch. Exit code 1 means that a RegBN did not run in a call,
    or ran on other modalities than its rule names, or that a call could not be checked.
    """
    parsed = None if rules is None else load_rules(rules, modalities, ignore)
    model, inputs = model_with_regbn(request, parsed)
    section, ignored = (None, ignore) if parsed is None else (parsed.inputs, parsed.ignore)
    with progress("loading the calls"), quiet_stdout():
        from .._api import verify as verified
        from .._given_batches import calls_of
        from .._inputs import find_inputs
        from .loading import load_data

        source = () if data is None else load_data(data)
    found: dict[str, Verification] = {}
    unchecked: dict[str, str] = {}
    with progress("following the modalities through each call"), quiet_stdout():
        names: list[str] = []
        if inputs is not None or section or data is None:  # else what the data holds is the example
            names.append("the example")
            first = verified(model, find_inputs(model, inputs, section), training=train)
            found["the example"] = _told(first, ignored)
        further = list(calls_of(model, itertools.islice(source, calls)))
        numbered = [f"call {number} of {data}" for number in range(1, len(further) + 1)]
        names += numbered
        if not names:
            raise InputsError(f"--data {data} gave no call, and there are no example inputs (`--input`, `--inputs`).")
        for name, call in zip(numbered, further, strict=True):
            try:
                found[name] = _told(verified(model, call, training=train), ignored)
            except (CaptureError, InputsError) as error:  # the last batch of a loader may hold one sample, say
                unchecked[name] = str(error)
    if form == "json":
        what: dict[str, dict[str, object]] = {name: one.to_dict() for name, one in found.items()}
        what |= {name: {"not_checked": why} for name, why in unchecked.items()}
        calls_told = [{"call": name, **what[name]} for name in names]
        write_text(json.dumps({"calls": calls_told}, indent=2, ensure_ascii=False), output)
    else:
        from rich.text import Text

        told = {name: str(one) for name, one in found.items()}
        told |= {name: f"not checked. {why}" for name, why in unchecked.items()}
        text = Text("\n".join(f"{name}: {told[name]}" for name in names))
        write_views(lambda width: [text], output)
    wrong, total = sum(not one.ok for one in found.values()), len(found) + len(unchecked)
    counted = f"{total} call{'' if total == 1 else 's'}"
    calls_in_all = f"{counted}, the example included," if "the example" in found and further else counted
    if unchecked:
        message(f"{len(unchecked)} of {calls_in_all} could not be checked")
    if wrong:
        finding(f"in {wrong} of {calls_in_all} RegBN did not run as its rule says; docs/notes.md explains the codes")
    if unchecked:
        raise click.exceptions.Exit(1)
    if rules is not None:
        next_step(f"train: model = regbnify(model, {rules!r}, example_inputs)")


def _told(found: Verification, ignore: tuple[str, ...]) -> Verification:
    """What was found in a call without the problems that are not to be told."""
    sites = tuple(site for site in found.sites if code_of(site.problem) not in ignore)
    return replace(found, sites=sites, notes=kept(found.notes, ignore))
