"""The user's own code: errors in it (factories, training, data) are told as theirs, and warnings at its lines."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from ._errors import RegBNError, RegBNWarning

#: Folders whose code is not the user's: this package, and the standard library with all that is installed in it.
_NOT_THE_USERS = (
    os.path.dirname(os.path.abspath(__file__)) + os.sep,
    os.path.dirname(os.path.abspath(os.__file__)) + os.sep,
    *(os.path.abspath(path) + os.sep for path in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))),
)


@contextlib.contextmanager
def users_own(what: str, kind: type[RegBNError], remedy: str = "") -> Iterator[None]:
    """Turn whatever the user's code raises inside into one error of ours that says what failed, how and where."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise kind(f"{what} failed: {cause_text(error)}{remedy}") from error


def drawn(data: Iterable[Any], kind: type[RegBNError]) -> Iterator[Any]:
    """What an iterable of the user's gives, with its errors told as those of its batches."""
    with users_own("starting to read the data", kind):
        source = iter(data)
    number, end = 1, object()
    while True:
        with users_own(f"reading batch {number} of the data", kind):
            batch = next(source, end)
        if batch is end:
            return
        yield batch
        number += 1


def cause_text(error: BaseException) -> str:
    """`ValueError: too small (model.py:12)`: the error with the user's own line, the deepest outside libraries."""
    text = str(error) if isinstance(error, RegBNError) else f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, SyntaxError):
        return text
    line = user_line(error)
    return f"{text} ({line})" if line and line not in text else text


def user_line(error: BaseException) -> str | None:
    """`model.py:12`: the deepest line of a traceback that is neither ours nor an installed library's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_users(frame.filename):
            return f"{frame.filename}:{frame.lineno}"
    return None


def _is_users(filename: str) -> bool:
    return not filename.startswith("<") and not os.path.abspath(filename).startswith(_NOT_THE_USERS)


def warn_at_call(text: str) -> None:
    """A warning that names the user's own line that led here; the caller's where there is none, as in a command."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and not _is_users(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, RegBNWarning, stacklevel=2 if frame is None else level)
