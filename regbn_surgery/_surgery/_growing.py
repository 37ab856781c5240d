"""The call of a host that runs just now: what it was given, and what its sites have met in it.

Sites look at its cache, above all where g is a decoder's own stream: with a key-value cache, a call shows the last
tokens of g alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .._errors import RegBNBypassedError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ._memory import Met
    from ._passage import Passage
    from ._site import RegBNSite


#: What a site was given: the site, whether it trained, g, its mask, and the count of writes to g.
Note = tuple["RegBNSite", bool, "Tensor", "Tensor | None", int]


class Frame:
    """One call of a host; within `with`, the innermost of this thread.

    `notes` and `met` (by the sites' tokens) say what its sites were given: see `_memory.met_in`. `met_before` (by their
    names) is what caches have kept, and `reached_within` the sites that ran in calls of the same host within this one.
    """

    def __init__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], host: nn.Module | None = None, role: int = 0
    ) -> None:
        self.args = args
        self.kwargs = kwargs
        self.host = host
        self.role = role
        self.notes: list[Note] = []
        self.met: dict[str, list[Met]] = {}
        self.passage: Passage | None = None
        self.passage_type: type[Passage] | None = None  # None: the usual one, for tensors
        self.met_before: Mapping[str, Met] = {}
        self.reached_within: set[str] = set()
        self.depth = 0

    def __enter__(self) -> Frame:
        stack = _calls.stack
        self.depth = len(stack)
        stack.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        del _calls.stack[self.depth :]


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
    with frame:
        yield frame


def current_frame() -> Frame | None:
    """The call of the innermost host that runs in this thread."""
    return _calls.stack[-1] if _calls.stack else None


def enclosing_frame(host: nn.Module) -> Frame | None:
    """The call of the same host around the innermost one: a forward that calls itself."""
    stack = _calls.stack
    return next((frame for frame in reversed(stack[:-1]) if frame.host is host), None) if len(stack) > 1 else None


def refuse_growing_g(tokens: int) -> None:
    """Raises RegBNBypassedError where the host goes on from a cache that holds more than the `tokens` of g that are
    there (one that holds just these has been filled with them in this very call)."""
    from ._memory import caches_in

    frame = current_frame()
    given = () if frame is None else (frame.args, frame.kwargs)
    if any(int(cache.get_seq_length()) > tokens for cache in caches_in(given)):
        raise RegBNBypassedError(
            "RegBN normalises against a decoder's own hidden states here, but a call that continues from a cache "
            f"holds only the last {tokens} tokens of them: the result would differ from the one without a cache. Call "
            "generate(..., use_cache=False), or normalise the other direction."
        )
