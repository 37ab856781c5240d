"""Undo what a run has changed, at whatever instruction it is interrupted.

A `with` has moments in which nothing protects it: between the change and the body, and in the first line of
`__exit__`. So whoever changes something writes down, before, how it is undone (`later`), and undoes it (`undone`) at
the end; `guarded`, around the whole run, undoes what an interrupt has left on the list. What undoes something must
bear to be called twice, since the interrupt may come while it runs.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ._thread_state import ThreadState

P = ParamSpec("P")
Result = TypeVar("Result")


class _Log(threading.local):
    def __init__(self) -> None:
        self.entries: list[Entry] = []


class Entry:
    """One change of this thread that is still to be undone."""

    def __init__(self, undo: Callable[[], None]) -> None:
        self.undo = undo


_log = _Log()


def later(undo: Callable[[], None]) -> Entry:
    """Put `undo` on the list. Call this before the change."""
    entry = Entry(undo)
    _log.entries.append(entry)
    return entry


def undone(entry: Entry) -> None:
    """Undo this change and those after it; nothing where that has happened."""
    if entry in _log.entries:
        _unwind(_log.entries.index(entry))


def forget(entry: Entry) -> None:
    """Let this change stand."""
    if entry in _log.entries:
        _log.entries.remove(entry)


def guarded(run: Callable[[], Result]) -> Result:
    """The result of `run`; whatever ends it, what it put on the list is undone and torch's thread state is put back."""
    before, depth = ThreadState(), len(_log.entries)
    try:
        try:
            return run()
        finally:
            _end(depth, before)
    finally:
        _end(depth, before)  # nothing to do, unless the first was interrupted


def guarding(function: Callable[P, Result]) -> Callable[P, Result]:
    """A decorator: every call of `function` is `guarded`."""

    @functools.wraps(function)
    def guarded_call(*args: P.args, **kwargs: P.kwargs) -> Result:
        return guarded(lambda: function(*args, **kwargs))

    return guarded_call


def _end(depth: int, before: ThreadState) -> None:
    before.restore()
    _unwind(depth)


def _unwind(depth: int) -> None:
    entries = _log.entries
    while len(entries) > depth:
        try:
            entries[-1].undo()
        except Exception:  # a second attempt would fail as well; an interrupt leaves the entry for a second attempt
            entries.pop()
            raise
        entries.pop()
