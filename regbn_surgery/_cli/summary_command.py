"""The command `summary`: what RegBN adds to a model in parameters, state, memory and time."""

from __future__ import annotations

import json
from typing import Any

import click

from .completing import complete_rules
from .destination import output_options
from .options import ModelRequest, model_options, rules_modality_option
from .output import debuggable, next_step, progress, quiet_stdout, write_text, write_views
from .with_regbn import load_rules, model_with_regbn


@click.command(
    short_help="Show what RegBN adds to a model: state, memory, time.",
    epilog="Example: regbn-surgery summary model.py:build rules.yaml",
)
@model_options
@rules_modality_option
@click.argument("rules", required=False, shell_complete=complete_rules)
@click.option("--calls", default=9, show_default=True, type=click.IntRange(1), help="How many calls to time.")
@click.option("--train", is_flag=True, help="Time forward passes in training mode; without it, in evaluation.")
@output_options("table", "json")
@debuggable
def summary(
    request: ModelRequest,
    modalities: dict[str, Any],
    rules: str | None,
    calls: int,
    train: bool,
    form: str,
    output: str | None,
) -> None:
    """Put RegBN into MODEL where RULES say, and list each RegBN with its host, state, and share of memory and time.

    MODEL is as for `inspect`; leave RULES out for one that contains RegBN already. Times are of forward passes on the
    example inputs, the median of --calls; on a CPU they are processor time.
    """
    parsed = None if rules is None else load_rules(rules, modalities)
    model, inputs = model_with_regbn(request, parsed)
    with progress(f"timing {calls} calls"), quiet_stdout():
        from .._inputs import find_inputs
        from .._summary import summary as summarised

        section = None if parsed is None else parsed.inputs
        found = summarised(model, find_inputs(model, inputs, section), calls=calls, training=train)
    if form == "json":
        write_text(json.dumps(found.to_dict(), indent=2, ensure_ascii=False), output)
    else:
        from .._report.summary import summary_view

        write_views(lambda width: [summary_view(found, width)], output)
    if rules is None:
        return
    next_step(
        "compare training with and without it",
        "sweep", *request.with_rules, "--rules", rules, "--train", "MODULE:FUNCTION",
    )  # fmt: skip
