"""The commands around rules files: `plan`, `check`, `init`, `schema`, `presets`.

Everything slow is imported inside them, and a rules file is read before torch is: a typo is told at once.
"""

from __future__ import annotations

import json
import textwrap
import warnings
from typing import TYPE_CHECKING, Any

import click

from .._visible import visible
from .completing import complete_preset, complete_rules
from .destination import ENDINGS, output_option, output_options
from .options import ModelRequest, ignore_option, modality_option, model_options, rules_modality_option, verbose_option
from .output import debuggable, finish_plan, message, next_step, write_text, write_views
from .with_regbn import load_rules
from .work import looked_at

if TYPE_CHECKING:
    from torch import nn

    from .._rules import Rules
    from .._types import Plan


@click.command(
    short_help="Show every decision of rules on a model.",
    epilog="Example: regbn-surgery plan model.py:build rules.yaml --format json -o plan.json",
)
@model_options
@rules_modality_option
@click.argument("rules", shell_complete=complete_rules)
@output_options("text", "json", "yaml")
@click.option("--steps", type=click.IntRange(1), help="Training steps to follow: says whether they are enough for W.")
@verbose_option
@ignore_option
@debuggable
def plan(
    request: ModelRequest,
    modalities: dict[str, Any],
    rules: str,
    form: str,
    output: str | None,
    steps: int | None,
    verbose: bool,
    ignore: tuple[str, ...],
) -> None:
    """Show what RULES decide on each fusion point of MODEL and why, and the RegBN modules that follow.

    RULES is a rules file or the name of a preset. MODEL is as for `inspect`; it is not changed. The JSON can be read
    back (`Plan.from_json`) and given to `regbnify` in place of the rules.
    """
    from .._codes import code_of
    from .._report.words import count_text

    planned = _plan(request, load_rules(rules, modalities, ignore), steps)
    if form == "text":
        from .._report.tables import IN_THE_SHELL, plan_view

        write_views(lambda width: [plan_view(planned, width, verbose, rest=IN_THE_SHELL)], output)
    elif form == "json":
        write_text(planned.to_json(), output)
    else:
        write_text(_yaml(planned), output)
    finish_plan(planned, told=form == "text" and output in (None, "-"))
    if steps is not None and planned.sites and "RB112" not in {*map(code_of, planned.notes), *planned.ignore}:
        message(f"{count_text(steps, 'step')} {'is' if steps == 1 else 'are'} enough for every RegBN in this plan")
    next_step("see the lines that change", "show", *(request.command if modalities else request.with_rules), rules)


def _plan(request: ModelRequest, parsed: Rules, steps: int | None = None) -> Plan:
    def look(built: nn.Module, inputs: Any) -> Plan:
        from .._api import plan as make_plan
        from .._errors import RegBNWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RegBNWarning)  # they are in the plan, from which they are told below
            return make_plan(built, parsed, inputs, steps=steps)

    return looked_at(request, parsed.inputs, "planning for {}", look, planning=True)


#: Editors complete and check by it, once `regbn-surgery schema -o rules.schema.json` has put it beside the file.
_FOR_EDITORS = "# yaml-language-server: $schema=rules.schema.json\n"


def _yaml(planned: Plan) -> str:
    import yaml

    text: str = yaml.safe_dump(planned.to_dict(), sort_keys=False, allow_unicode=True, width=120)
    return text.rstrip("\n")


@click.command(
    short_help="Check a rules file, with or without a model.",
    epilog="Example: regbn-surgery check rules.yaml, or regbn-surgery check rules.yaml model.py:build",
)
@click.argument("rules", shell_complete=complete_rules)
@model_options
@rules_modality_option
@ignore_option
@debuggable
def check(rules: str, request: ModelRequest, modalities: dict[str, Any], ignore: tuple[str, ...]) -> None:
    """Check RULES, a rules file or the name of a preset: every problem with line and column.

    With MODEL, as for `inspect`, also whether each rule, exclude and override finds something in it.
    """
    from .._report.tables import what_is_normalised
    from .._report.words import count_text

    parsed = load_rules(rules, modalities, ignore)
    names = ", ".join(rule.id for rule in parsed.rules)
    head = f"{rules}: {count_text(len(parsed.rules), 'rule')} ({names}), no problem found"
    if not request.spec:
        click.echo(visible(head))
        next_step("check it on your model", "check", rules, "MODEL")
        return
    planned = _plan(request, parsed)
    modules = count_text(len(planned.sites), "RegBN module")
    click.echo(visible(f"{head}; {what_is_normalised(planned)}, {modules}"))
    finish_plan(planned)
    next_step("see each decision", "plan", *(request.command if modalities else request.with_rules), rules)


for _parameter in check.params:
    if _parameter.name == "model":
        _parameter.required = False


@click.command(
    short_help="Write a first rules file for a model.",
    epilog="Example: regbn-surgery init model.py:build -o rules.yaml",
)
@model_options
@modality_option
@output_option(ENDINGS["yaml"])
@debuggable
def init(request: ModelRequest, modalities: dict[str, Any], output: str | None) -> None:
    """Write a commented rules file for MODEL, with a rule for each fusion point at which RegBN can go in.

    The file can be used as it is. MODEL is as for `inspect`. Its first line names the schema that editors complete and
    check by: `regbn-surgery schema -o rules.schema.json` puts it there.
    """

    def look(built: nn.Module, inputs: Any) -> str:
        from .._starter import starter_rules

        return starter_rules(built, inputs, modalities or None)

    text = looked_at(request, None, "running {} and trying its rules", look)
    write_text(_FOR_EDITORS + text.rstrip("\n"), output)
    if output in (None, "-"):
        next_step("write it to a file", "init", *request.command, "-o", "rules.yaml")
    else:
        next_step("see what it does", "plan", *request.with_rules, str(output))


@click.command(
    short_help="Print the JSON Schema of rules files.",
    epilog="Example: regbn-surgery schema -o rules.schema.json",
)
@output_option(ENDINGS["json"])
@debuggable
def schema(output: str | None) -> None:
    """Print the JSON Schema of the rules language, for completion and checks in editors.

    In editors with the YAML language server, the first line of a rules file names it:
    `# yaml-language-server: $schema=rules.schema.json`
    """
    from .._rules.json_schema import rules_schema

    write_text(json.dumps(rules_schema(), indent=2, ensure_ascii=False), output)
    name = "rules.schema.json" if output in (None, "-") else output
    next_step(f"let your editor use it; first line of a rules file: # yaml-language-server: $schema={name}")


@click.command(
    short_help="List the presets, or print one.",
    epilog="Example: regbn-surgery presets late",
)
@click.argument("name", required=False, shell_complete=complete_preset)
@output_option((*ENDINGS["yaml"], "txt"))
@debuggable
def presets(name: str | None, output: str | None) -> None:
    """List the rules files that come with the package and are used by name, or print the one called NAME."""
    from .._rules.presets import preset_names, preset_summary, preset_text

    if name is not None:
        write_text(preset_text(name).rstrip("\n"), output)
        next_step("see what it does to your model", "plan", "MODEL", name if output in (None, "-") else str(output))
        return
    width = max((len(known) for known in preset_names()), default=0) + 2
    lines = [
        textwrap.fill(preset_summary(known), 80, initial_indent=f"{known:<{width}}", subsequent_indent=" " * width)
        for known in preset_names()
    ]
    write_text("\n".join(lines), output)
    next_step("see what one does to your model", "plan", "MODEL", "late")


RULES_COMMANDS = (plan, check, init, schema, presets)
