"""The commands. Everything slow is imported inside them, so that `--help` answers at once."""

from __future__ import annotations

import json

import click

from .._version import __version__
from .options import ModelRequest, modality_option, model_options
from .output import debuggable, quiet_stdout, warn, write_text, write_views
from .rules_commands import RULES_COMMANDS


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="regbn-surgery")
def cli() -> None:
    """Find where the modalities of a PyTorch model meet, and put RegBN there.

    Exit codes: 0 fine, 1 a finding (no fusion point, a rule that matches nothing), 2 an input that cannot be used.
    """


@cli.command(
    short_help="List the places where modalities meet.",
    epilog="Example: regbn-surgery inspect model.py:build --modality image=pixels --modality text=input_ids",
)
@model_options
@modality_option
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("-o", "--output", metavar="FILE", help="Write to a file instead of stdout; FILE.svg is a picture.")
@debuggable
def inspect(request: ModelRequest, modalities: dict[str, list[str]], form: str, output: str | None) -> None:
    """List the fusion points of MODEL: where its modalities meet, and what RegBN would cost there.

    MODEL is `package.module:factory` or `path/to/file.py:factory`; the factory returns a model, or a pair of model
    and example inputs. A class works too, and `hf:ClassName` or `hf:config.json` for one of transformers.
    """
    from .._api import inspect as run

    with quiet_stdout():
        built, inputs = request.load()
        found = run(built, inputs, modalities or None)
    if form == "json":
        write_text(json.dumps(found.to_dict(), indent=2, ensure_ascii=False), output)
    else:
        from .._report.tables import inspection_view

        write_views(lambda width: [inspection_view(found, width)], output)
    if not found.fusion_points:
        warn("no fusion point: no two modalities of this model meet")
        raise click.exceptions.Exit(1)


@cli.command(
    short_help="Show what rules would do to a model.",
    epilog="Example: regbn-surgery show model.py:build rules.yaml",
)
@model_options
@click.argument("rules")
@click.option("-o", "--output", metavar="FILE", help="Write to a file instead of stdout; FILE.svg is a picture.")
@debuggable
def show(request: ModelRequest, rules: str, output: str | None) -> None:
    """Show what RULES would do to MODEL: each RegBN module, and the code of its host before and after.

    RULES is a rules file or the name of a preset. MODEL is as for `inspect`; it is not changed.
    """
    from .._rules import Rules

    parsed = Rules.load(rules)  # before torch: a typo should not take seconds to be told
    from .._api import plan as make_plan
    from .._api import regbnify
    from .._report.diff import host_views
    from .._report.tables import plan_view
    from .._rewrite import explain

    with quiet_stdout():
        built, inputs = request.load(weights=True)
        planned = make_plan(built, parsed, inputs)
        hosts = explain(regbnify(built, parsed, inputs)) if planned.sites else ()
    write_views(lambda width: [plan_view(planned, width), *host_views(hosts)], output)


for _command in RULES_COMMANDS:
    cli.add_command(_command)
