"""The rules of a command line, and the model with RegBN in it: by these rules, or as the factory returns it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from .._errors import RegBNWarning
from .options import ModelRequest
from .output import progress, quiet_stdout

if TYPE_CHECKING:
    from torch import nn

    from .._rules import Rules


def load_rules(rules: str, modalities: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> Rules:
    """The rules of that name, with the modalities of `--modality` where they name none themselves.

    Raises `RulesError`, also where they do; before torch is imported, since a typo should not take seconds to be told.
    """
    from .._rules import Rules

    return Rules.load(rules).with_modalities(modalities).ignoring(ignore)


def model_with_regbn(request: ModelRequest, rules: Rules | None) -> tuple[nn.Module, Any]:
    """The model of the request with RegBN in it, and its example inputs: the one that carries RegBN already, without
    rules, else one into which the rules put it. Raises `click.UsageError` for neither or both."""
    with progress("loading torch and the model"), quiet_stdout():
        from .._api import regbnify
        from .._surgery import no_regbn, rewritten_inside, the_rewritten

        built, inputs = request.load(weights=True, section=None if rules is None else rules.inputs)
    carries, name = rewritten_inside(built), type(built).__name__
    if rules is None:
        if not carries:
            raise click.UsageError(f"{no_regbn(built)} Name a rules file or a preset as RULES, by which it is put in.")
        return the_rewritten(built), inputs
    if carries:
        raise click.UsageError(f"{name} contains RegBN already: leave RULES out, and it is taken as it is.")
    with progress(f"putting RegBN into {name}"), quiet_stdout(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RegBNWarning)
        return regbnify(built, rules, inputs), inputs
