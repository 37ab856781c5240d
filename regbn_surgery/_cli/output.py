"""Where the command line writes: data to stdout or a file, messages to stderr, and which exit code an error gives."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from .._errors import RegBNError
from .._user_code import cause_text, user_line
from .._visible import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .._types import Plan

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: A problem that is not ours to explain: a fault in this program or in the model's own code.
_UNEXPECTED = 2


class NotWrittenError(click.ClickException):
    """A file that cannot be written: an input that cannot be used."""

    exit_code = _UNEXPECTED


_QUIET = f"{__name__}.quiet"


def _note_quiet(context: click.Context, option: click.Parameter, quiet: bool) -> None:
    context.meta[_QUIET] = quiet


def _is_quiet() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_QUIET))


def debuggable(command: _Command) -> _Command:
    """Turn errors into one message and an exit code. Gives a command `--debug`, for tracebacks, and `--quiet`."""

    @click.option("--debug", is_flag=True, help="Show tracebacks.")
    @click.option(
        "-q",
        "--quiet",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_note_quiet,
        help="Write results and errors only: no progress, no messages.",
    )
    @functools.wraps(command)
    def wrapped(*args: Any, debug: bool, **kwargs: Any) -> None:
        if debug:
            command(*args, **kwargs)
            return
        try:
            command(*args, **kwargs)
        except RegBNError as error:
            _complain(str(error) + _origin(error))
            raise click.exceptions.Exit(error.exit_code) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            _complain(f"unexpected error: {cause_text(error)}\nRun again with --debug for the traceback.")
            raise click.exceptions.Exit(_UNEXPECTED) from error

    return wrapped  # type: ignore[return-value]


def _origin(error: RegBNError) -> str:
    """Where the model's own code failed, if that is what this error is about."""
    if error.__cause__ is None or isinstance(error.__cause__, RegBNError):
        return ""
    line = user_line(error.__cause__)
    return f"\n(raised at {line}; --debug shows the traceback)" if line and line not in str(error) else ""


def _complain(text: str) -> None:
    click.echo(
        click.style("error: ", fg="red", bold=True) + visible(text), err=True, color=None if _coloured() else False
    )


def _coloured() -> bool:
    return not os.environ.get("NO_COLOR") and sys.stderr.isatty()


def message(text: str) -> None:
    """Write a message that is no error to stderr; not under `--quiet`."""
    if not _is_quiet():
        click.echo(visible(text), err=True)


def finding(text: str) -> NoReturn:
    """End a command that has found something amiss: say what, also under `--quiet`, and exit with 1."""
    click.echo(visible(text), err=True)
    raise click.exceptions.Exit(1)


def finish_plan(planned: Plan, *, told: bool = False) -> None:
    """What every command with a plan ends with: its warnings on stderr, by their codes where they have been `told`
    among the notes, and a finding where it does nothing."""
    from .._codes import code_of
    from .._report.tables import fails_on_a_copy

    if told and planned.warnings:
        message(f"warning: see {', '.join(dict.fromkeys(filter(None, map(code_of, planned.warnings))))} above")
    for text in () if told else planned.warnings:
        message(f"warning: {text}")
    if not planned.sites:
        finding("nothing would be normalised")
    if fails_on_a_copy(planned):
        finding("the surgery fails: see RB106")


def next_step(text: str, *words: str) -> None:
    """The last line of a command: what to do next, and the command line that does it."""
    command = f": {shlex.join(('regbn-surgery', *words))}" if words else ""
    message(f"Next, {text}{command}")


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """While the model's own code runs, what it prints goes to stderr: stdout is for data."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


#: Seconds after which a person wants to be told that something is being done.
_PATIENCE = 1.0


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Say what is being done, on a terminal, once it takes longer than a second; not under `--quiet`."""
    if _is_quiet() or not sys.stderr.isatty():
        yield
        return
    from .._report.console import SafeConsole

    status = SafeConsole(stderr=True).status(text)
    timer = threading.Timer(_PATIENCE, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()


def write_text(text: str, output: str | None) -> None:
    """Write plain text to a file, or to stdout where `output` is None or `-`."""
    if output in (None, "-"):
        click.echo(visible(text) if sys.stdout.isatty() else text)  # elsewhere it is data
        return
    try:
        with open(str(output), "w", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        raise NotWrittenError(f"cannot write {output!r}: {error.strerror or error}") from error
    message(f"wrote {output}")


def write_bytes(content: bytes, output: str | None) -> None:
    """Write a picture to a file or, where `output` is None or `-`, to a stdout that is no terminal."""
    if output in (None, "-"):
        if sys.stdout.isatty():
            raise click.UsageError("a terminal cannot show a picture: give -o FILE")
        sys.stdout.buffer.write(content)
        return
    try:
        with open(str(output), "wb") as file:
            file.write(content)
    except OSError as error:
        raise NotWrittenError(f"cannot write {output!r}: {error.strerror or error}") from error
    message(f"wrote {output}")


#: Columns of a picture of the terminal.
_PICTURE_WIDTH = 96


def _picture(views: list[RenderableType]) -> str:
    """The views as an SVG picture of a terminal."""
    import io

    from .._report.console import SafeConsole

    console = SafeConsole(
        record=True, width=_PICTURE_WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    # The command stands where it was typed: in the title bar a long one would run over the buttons.
    console.print(f"$ {_command(sys.argv[1:])}\n", highlight=False, markup=False, style="dim")
    for view in views:
        console.print(view, highlight=False)
    console.print()  # else the frame cuts what hangs below the last line
    # Without the fonts that rich would have a reader's browser fetch from elsewhere: any monospace one will do.
    return _FONT_FACE.sub("", console.export_svg(title="regbn-surgery"))


_FONT_FACE = re.compile(r"@font-face\s*\{[^}]*\}\s*")


def _command(words: list[str]) -> str:
    """The command line of a picture, without where the picture goes."""
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word not in ("--debug", "--force", "--quiet", "-o", "--output") and before not in ("-o", "--output")
    ]
    return " ".join(["regbn-surgery", *kept])


def write_views(make: Callable[[int], list[RenderableType]], output: str | None) -> None:
    """Write rich views: in colour and at full width to a terminal, as a picture to a file that ends in `.svg`, plain
    and 80 columns wide to anything else."""
    if output is not None and output.lower().endswith(".svg"):
        write_text(_picture(make(_PICTURE_WIDTH)), output)
        return
    if output not in (None, "-") or not sys.stdout.isatty():
        from .._report.text import plain

        write_text("\n".join(plain(view) for view in make(80)), output)
        return
    from .._report.console import SafeConsole
    from .._report.text import show

    console = SafeConsole(highlight=False)
    for view in make(console.width):
        show(console, view)
