"""The call of a host that runs just now: what it was given, and what its sites have met in it.

Sites look at its cache, above all where g is a decoder's own stream: with a key-value cache, a call shows the last
tokens of g alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .._errors import RegBNBypassedError

if TYPE_CHECKING:
    from torch import nn

    from ._memory import Met
    from ._passage import Passage


@dataclass
class Frame:
    """One call of a host. `met` is by the sites' tokens, `met_before` (what caches have kept) by their names."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    met: dict[str, list[Met]] = field(default_factory=dict)
    host: nn.Module | None = None
    role: int = 0
    passage: Passage | None = None
    met_before: Mapping[str, Met] = field(default_factory=dict)
    reached_within: set[str] = field(default_factory=set)  # sites that ran in calls of the same host within this one


class _Calls(threading.local):
    def __init__(self) -> None:
        self.stack: list[Frame] = []


_calls = _Calls()


@contextmanager
def called_with(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Frame]:
    """The arguments of the host that runs inside, for sites that have to look at its cache."""
    frame = Frame(args, kwargs)
    if torch.compiler.is_compiling():
        yield frame
        return
    from ._memory import forget_if_empty

    forget_if_empty(args, kwargs)
    _calls.stack.append(frame)
    try:
        yield frame
    finally:
        _calls.stack.pop()


def current_frame() -> Frame | None:
    """The call of the innermost host that runs in this thread."""
    return _calls.stack[-1] if _calls.stack else None


def enclosing_frame(host: nn.Module) -> Frame | None:
    """The call of the same host around the innermost one: a forward that calls itself."""
    return next((frame for frame in reversed(_calls.stack[:-1]) if frame.host is host), None)


def refuse_growing_g(tokens: int) -> None:
    """Raises RegBNBypassedError where the host goes on from a cache that holds more than the `tokens` of g that are
    there (one that holds just these has been filled with them in this very call)."""
    from ._memory import caches_in

    frame = current_frame()
    given = () if frame is None else (frame.args, frame.kwargs)
    if any(int(cache.get_seq_length()) > tokens for cache in caches_in(given)):
        raise RegBNBypassedError(
            f"RegBN is to normalise against a decoder's own stream, of which only the last {tokens} tokens are there, "
            "since the call goes on from a cache: what is subtracted would be another thing than without one. Call "
            "generate(..., use_cache=False), or normalise the other direction."
        )
