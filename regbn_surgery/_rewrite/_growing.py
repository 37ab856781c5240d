"""Where g is a decoder's own stream: with a key-value cache, a call shows the last tokens of g alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .._errors import RegBNBypassedError


class _Calls(threading.local):
    def __init__(self) -> None:
        self.stack: list[tuple[Any, ...]] = []


_calls = _Calls()


@contextmanager
def called_with(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """The arguments of the host that runs inside, for sites that have to look at its cache."""
    if torch.compiler.is_compiling():
        yield
        return
    _calls.stack.append((args, kwargs))
    try:
        yield
    finally:
        _calls.stack.pop()


def refuse_growing_g(tokens: int) -> None:
    """Raises RegBNBypassedError where the host goes on from a cache that holds more than the `tokens` of g that are
    there (one that holds just these has been filled with them in this very call)."""
    from ._bypass import caches_in

    if any(int(cache.get_seq_length()) > tokens for cache in caches_in(_calls.stack[-1:])):
        raise RegBNBypassedError(
            f"RegBN is to normalise against a decoder's own stream, of which only the last {tokens} tokens are there, "
            "since the call goes on from a cache: what is subtracted would be another thing than without one. Call "
            "generate(..., use_cache=False), or normalise the other direction."
        )
