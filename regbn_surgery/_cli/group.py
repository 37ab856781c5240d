"""The group of all commands: what it says to a name that is none of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

import click

from .._errors import RegBNWarning
from .._spelling import nearest

#: Names that a person may try (those of the Python functions, above all), and the command that does it.
_MEANT = {
    "explain": "show",
    "diff": "show",
    "regbnify": "show",
    "rewrite": "show",
    "apply": "show",
    "graph": "show",
    "insert_regbn": "show",
    "find": "inspect",
    "list": "inspect",
    "points": "inspect",
    "trace": "inspect",
    "starter_rules": "init",
    "rules": "init",
    "new": "init",
    "validate": "check",
    "lint": "check",
    "decide": "plan",
    "dry-run": "plan",
    "statistics": "summary",
    "info": "summary",
    "measure": "diagnose",
    "dependence": "diagnose",
    "train": "sweep",
    "compare": "sweep",
    "preset": "presets",
    "complete": "completion",
}
#: Functions of the library that no command does.
_PYTHON_ONLY = ("unregbnify", "freeze", "fold", "save_regbn", "load_regbn", "convert_sync_regbn")


class Commands(click.Group):
    """A group that suggests the command which does what was asked for, not the one with the nearest spelling alone."""

    def invoke(self, context: click.Context) -> Any:
        with _plain_warnings():
            return super().invoke(context)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        known = context.resilient_parsing or name.startswith("-") or self.get_command(context, name) is not None
        if not known:
            self._refuse(context, name)
        return super().resolve_command(context, args)

    def _refuse(self, context: click.Context, name: str) -> NoReturn:
        commands = self.list_commands(context)
        start = f"No such command {name!r}."
        asked = nearest(name, (*commands, *_MEANT, *_PYTHON_ONLY))
        if asked is None:
            context.fail(f"{start} The commands: {', '.join(commands)}")
        if asked in _PYTHON_ONLY:
            context.fail(f"{start} It can be done in Python: regbn_surgery.{asked}(model)")
        meant = _MEANT.get(asked, asked)
        command = self.commands[meant]
        context.fail(f"{start} Did you mean {meant!r}? {command.get_short_help_str(100)}")


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print our own warnings without the line of the package that gave them: nobody's code is at it."""
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, RegBNWarning):
            click.echo(f"warning: {message}", err=True)
        else:
            shown(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown
