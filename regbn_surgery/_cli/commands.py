"""The commands. Everything slow is imported inside them, so that `--help` answers at once."""

from __future__ import annotations

import json
from typing import Any

import click

from .._version import __version__
from . import work
from .completing import complete_rules
from .formats import graph_options, write_graph
from .group import Commands
from .more_commands import MORE_COMMANDS
from .options import ModelRequest, ignore_option, modality_option, model_options, rules_modality_option, verbose_option
from .output import debuggable, finding, finish_plan, next_step, write_text, write_views
from .rules_commands import RULES_COMMANDS
from .summary_command import summary
from .sweep_command import sweep
from .verify_command import verify
from .with_regbn import load_rules


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="regbn-surgery")
def cli() -> None:
    """Find where the modalities of a PyTorch model meet, and put RegBN there.

    Exit codes: 0: done; 1: nothing found, or a rule matched nothing; 2: wrong usage or input.
    """


@cli.command(
    short_help="List the places where modalities meet.",
    epilog="Example: regbn-surgery inspect model.py:build --modality image=pixels --modality text=module:text_encoder",
)
@model_options
@modality_option
@graph_options("table", "tree", "json")
@verbose_option
@ignore_option
@debuggable
def inspect(
    request: ModelRequest,
    modalities: dict[str, Any],
    form: str,
    output: str | None,
    verbose: bool,
    ignore: tuple[str, ...],
) -> None:
    """List the fusion points of MODEL: where its modalities meet, and what RegBN would cost there.

    MODEL is `package.module:factory` or `path/to/file.py:factory`; the factory returns a model, or a pair of model
    and example inputs. A class works too, and `hf:ClassName` or `hf:config.json` for one of transformers.
    """
    found = work.inspected(request, modalities, ignore)
    if form == "json":
        write_text(json.dumps(found.inspection.to_dict(), indent=2, ensure_ascii=False), output)
    elif form == "table":
        from .._report.tables import IN_THE_SHELL, inspection_view

        write_views(lambda width: [inspection_view(found.inspection, width, verbose, rest=IN_THE_SHELL)], output)
    elif form == "tree":
        from .._report.tree import tree_view

        write_views(lambda width: [tree_view(found.graph, width)], output)
    else:
        write_graph(form, found.graph, None, (), output)
    if not found.inspection.fusion_points:
        few = len(found.inspection.modalities) < 2
        finding(
            "no fusion point: "
            + ("fewer than two modalities; name them by --modality" if few else "no two modalities of this model meet")
        )
    next_step("write a first rules file", "init", *request.command, "-o", "rules.yaml")


@cli.command(
    short_help="Show what rules do to a model.",
    epilog="Example: regbn-surgery show model.py:build rules.yaml --format html -o model.html",
)
@model_options
@rules_modality_option
@click.argument("rules", shell_complete=complete_rules)
@graph_options("diff", "table", "tree", "json")
@verbose_option
@ignore_option
@debuggable
def show(
    request: ModelRequest,
    modalities: dict[str, Any],
    rules: str,
    form: str,
    output: str | None,
    verbose: bool,
    ignore: tuple[str, ...],
) -> None:
    """Show what RULES do to MODEL: each RegBN module, and the code of its host before and after.

    RULES is a rules file or the name of a preset. MODEL is as for `inspect`; it is not changed.
    """
    done = work.operated(request, load_rules(rules, modalities, ignore))
    if form in ("diff", "table"):
        from .._report.diff import host_views
        from .._report.tables import IN_THE_SHELL, plan_view, sites_table

        write_views(
            lambda width: (
                [plan_view(done.plan, width, verbose, rest=IN_THE_SHELL), *host_views(done.hosts)]
                if form == "diff"
                else [sites_table(done.plan.sites, width)]
            ),
            output,
        )
    elif form == "tree":
        from .._report.tree import tree_view

        write_views(lambda width: [tree_view(done.after or done.graph, width)], output)
    elif form == "json":
        from .._report.jsonout import surgery_to_dict

        write_text(json.dumps(surgery_to_dict(done.plan, done.hosts), indent=2, ensure_ascii=False), output)
    else:
        write_graph(form, done.graph, done.after, done.hosts, output)
    finish_plan(done.plan, told=form == "diff" and output in (None, "-"))
    next_step(f"put RegBN in and train as before: model = regbnify(model, {rules!r}, example_inputs)")


for _command in (*RULES_COMMANDS, verify, summary, sweep, *MORE_COMMANDS):
    cli.add_command(_command)
