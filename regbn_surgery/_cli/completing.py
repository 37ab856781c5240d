"""What a shell offers where a person presses Tab. Nothing slow is imported here, and nothing of the user's is run."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import CompletionItem

_RULES = (".yaml", ".yml")


def complete_file(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders, as the shell knows them."""
    return [CompletionItem(incomplete, type="file")]


def complete_model(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders for the part before the colon; what comes after it would mean running them."""
    return [] if incomplete.startswith("hf:") else complete_file(context, parameter, incomplete)


def complete_preset(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of presets, with what they do where the shell shows that."""
    from .._rules.presets import preset_names, preset_summary

    return [CompletionItem(name, help=preset_summary(name)) for name in preset_names() if name.startswith(incomplete)]


def complete_rules(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Presets and the rules files of this folder; where none of them fits, any file (which shells offer alone)."""
    files = () if os.sep in incomplete else sorted(path.name for path in Path().iterdir() if path.suffix in _RULES)
    found = complete_preset(context, parameter, incomplete)
    found += [CompletionItem(name) for name in files if name.startswith(incomplete)]
    return found or complete_file(context, parameter, incomplete)
