"""Catch every `nn.Module` call of this thread for the time of a `with`, and put things back whatever happens.

`nn.Module.__call__` is one class attribute for the whole process, so it is replaced once, counted, and asks a
thread-local stack who is listening: a thread that captures does not disturb one that trains.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn


class CallHandler(Protocol):
    def on_call(
        self, call: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any: ...


class _Listeners(threading.local):
    def __init__(self) -> None:
        self.stack: list[CallHandler] = []


_listeners = _Listeners()
_lock = threading.Lock()
_users = 0
_original: Callable[..., Any] | None = None


def _dispatch(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    call = _original
    assert call is not None, "module calls are dispatched only while patched"
    if not _listeners.stack:
        return call(module, *args, **kwargs)
    return _listeners.stack[-1].on_call(call, module, args, kwargs)


@contextmanager
def intercepting(handler: CallHandler) -> Iterator[None]:
    """Route this thread's module calls through `handler.on_call(original_call, module, args, kwargs)`."""
    global _users, _original
    with _lock:
        if _users == 0:
            _original = nn.Module.__call__
            nn.Module.__call__ = _dispatch  # type: ignore[method-assign]
        _users += 1
    _listeners.stack.append(handler)
    try:
        yield
    finally:
        _listeners.stack.pop()
        with _lock:
            _users -= 1
            if _users == 0:
                assert _original is not None
                nn.Module.__call__ = _original  # type: ignore[method-assign]
