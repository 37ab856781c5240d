"""Where a command writes to, looked at before the work starts: not done for nothing, and not over somebody's file."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import click

from .completing import complete_file

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: The endings of files for each format, the usual one first. A text in `.svg` is a picture of the terminal.
ENDINGS: dict[str, tuple[str, ...]] = {
    "table": ("txt", "svg"),
    "tree": ("txt", "svg"),
    "text": ("txt", "svg"),
    "diff": ("diff", "patch", "txt", "svg"),
    "json": ("json",),
    "yaml": ("yaml", "yml"),
    "dot": ("dot", "gv"),
    "svg": ("svg",),
    "png": ("png",),
    "html": ("html", "htm"),
    "explorer": ("json",),
}
#: The formats that are pictures.
PICTURES = ("svg", "png")


def output_option(
    endings: Collection[str], text: str = "Write to a file instead of stdout."
) -> Callable[[_Command], _Command]:
    """Give a command `-o/--output` and `--force`; it gets `output`: a path that can be written to, `-` or None.

    `endings` are those that its files may have; another one is refused. A name without an ending is taken.
    """

    def decorate(command: _Command) -> _Command:
        @_two_options(text)
        @functools.wraps(command)
        def wrapped(*args: Any, output: str | None, force: bool, **kwargs: Any) -> Any:
            if output is not None:
                check_ending(output, endings)
                check_file(output, force)
            return command(*args, output=output, **kwargs)

        return wrapped  # type: ignore[return-value]

    return decorate


def output_options(
    *forms: str, drawn_by: tuple[str, str] | None = None, form_help: str = ""
) -> Callable[[_Command], _Command]:
    """Give a command `--format`, one of `forms` (the first is the default), `-o/--output` and `--force`.

    The command gets `form` and `output`. Without `--format` the ending of the file decides. `drawn_by` is the module
    that draws pictures, and what to do where it is missing.
    """

    def decorate(command: _Command) -> _Command:
        @click.option(
            "--format",
            "form",
            type=click.Choice(forms),
            help=f"What to write; by default what the ending of FILE stands for, else {forms[0]}.{form_help}",
        )
        @_two_options("Write to a file instead of stdout. A text format in FILE.svg is a picture of the terminal.")
        @functools.wraps(command)
        def wrapped(*args: Any, form: str | None, output: str | None, force: bool, **kwargs: Any) -> Any:
            chosen = form or _form_of(output, forms)
            if output is not None:
                known = ENDINGS[form] if form else tuple(dict.fromkeys(e for each in forms for e in ENDINGS[each]))
                check_ending(output, known, f" with --format {form}" if form else "")
                check_file(output, force)
            if chosen in PICTURES:
                _check_picture(chosen, output, drawn_by)
            return command(*args, form=chosen, output=output, **kwargs)

        return wrapped  # type: ignore[return-value]

    return decorate


def _two_options(text: str) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        command = click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")(command)
        return click.option("-o", "--output", metavar="FILE", shell_complete=complete_file, help=text)(command)

    return decorate


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower().removeprefix(".")


def _form_of(output: str | None, forms: Sequence[str]) -> str:
    """The form for which the ending of a file is the most usual one; the first form where none has it."""
    ending = _ending(output or "")
    fitting = [form for form in forms if ending in ENDINGS[form]]
    return min(fitting, key=lambda form: ENDINGS[form].index(ending), default=forms[0])


def check_ending(path: str, endings: Collection[str], when: str = "") -> None:
    """Raises click.UsageError for a file with an ending that stands for none of the formats."""
    ending = _ending(path)
    if path != "-" and ending and ending not in endings:
        known = ", ".join(f".{known}" for known in endings)
        raise click.UsageError(f"-o {path}: unknown ending .{ending}{when}; use {known}")


def check_file(path: str, force: bool) -> None:
    """Raises click.UsageError for a file that cannot be written, or that is there and would be lost."""
    if path == "-":
        return
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise click.UsageError(f"-o {path}: this is a folder; give the name of a file in it")
    if not os.path.isdir(folder):
        raise click.UsageError(f"-o {path}: the folder {folder} does not exist; create it first")
    if os.path.isfile(path) and not force:
        raise click.UsageError(f"-o {path}: the file exists; --force overwrites it")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise click.UsageError(f"-o {path}: no permission to write there")


def _check_picture(form: str, output: str | None, drawn_by: tuple[str, str] | None) -> None:
    if output in (None, "-") and sys.stdout.isatty():
        raise click.UsageError(f"--format {form} writes a picture, which a terminal cannot show: give -o FILE")
    if drawn_by is not None and importlib.util.find_spec(drawn_by[0]) is None:
        module, otherwise = drawn_by
        raise click.UsageError(
            f"--format {form} needs {module}, which is not installed: pip install 'regbn_surgery[viz]'. {otherwise}"
        )
