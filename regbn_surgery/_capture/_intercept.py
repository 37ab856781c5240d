"""Catch the module calls and autocast regions of this thread for the time of a `with`, and put things back.

`nn.Module.__call__` is one class attribute for the whole process (and so are autocast's methods), so it is replaced
once, counted, and asks a thread-local stack who is listening: a thread that captures does not disturb one that trains.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch._functorch.apis
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
_originals: dict[tuple[Any, str], Any] = {}
_CALL, _ENTER, _EXIT = (nn.Module, "__call__"), (torch.autocast, "__enter__"), (torch.autocast, "__exit__")
_APPLY = (torch.autograd.Function, "apply")
_KEEP = (torch.autograd.graph.saved_tensors_hooks, "__enter__")
_KEPT = (torch.autograd.graph.saved_tensors_hooks, "__exit__")
_VMAP = (torch._functorch.apis, "vmap_impl")


def _dispatch(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    call = _originals[_CALL]
    if not _listeners.stack:
        return call(module, *args, **kwargs)
    return _listeners.stack[-1].on_call(call, module, args, kwargs)


def _enter(region: torch.autocast) -> Any:
    entered = _originals[_ENTER](region)
    _tell(region, entering=True)
    return entered


def _exit(region: torch.autocast, *exc: Any) -> Any:
    left = _originals[_EXIT](region, *exc)
    _tell(region, entering=False)
    return left


def _tell(region: torch.autocast, entering: bool) -> None:
    listen = getattr(_listeners.stack[-1], "on_autocast", None) if _listeners.stack else None
    if listen is not None:
        listen(region, entering)


def _keep(hooks: torch.autograd.graph.saved_tensors_hooks) -> Any:
    entered = _originals[_KEEP](hooks)
    _tell_kept(entering=True)
    return entered


def _kept(hooks: torch.autograd.graph.saved_tensors_hooks, *exc: Any) -> Any:
    left = _originals[_KEPT](hooks, *exc)
    _tell_kept(entering=False)
    return left


def _tell_kept(entering: bool) -> None:
    listen = getattr(_listeners.stack[-1], "on_saved_tensors", None) if _listeners.stack else None
    if listen is not None:
        listen(entering)


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    if _users == 0 and torch.compiler.is_compiling():
        return cls.apply(*args, **kwargs)  # captured code holds on to this one: let dynamo see the function itself
    call = functools.partial(_originals[_APPLY].__func__, cls)
    listen = getattr(_listeners.stack[-1], "on_function", None) if _listeners.stack else None
    return call(*args, **kwargs) if listen is None else listen(call, cls, args, kwargs)


def _vmapped(
    func: Any, in_dims: Any, out_dims: Any, randomness: str, chunk_size: Any, *args: Any, **kwargs: Any
) -> Any:
    call = functools.partial(_originals[_VMAP], func, in_dims, out_dims, randomness, chunk_size)
    listen = getattr(_listeners.stack[-1], "on_vmap", None) if _listeners.stack else None
    return call(*args, **kwargs) if listen is None else listen(call, func, args, kwargs)


def _asking(name: str) -> Callable[..., Any]:
    """A question to torch about its settings, which no function mode hears of."""
    original = getattr(torch, name)

    def ask(*args: Any, **kwargs: Any) -> Any:
        listen = getattr(_listeners.stack[-1], "on_asked", None) if _listeners.stack else None
        if listen is not None:
            listen()
        return original(*args, **kwargs)

    return ask


_QUESTIONS = ("is_autocast_enabled", "get_autocast_dtype", "is_inference_mode_enabled")
_REPLACEMENTS: dict[tuple[Any, str], Any] = {
    _CALL: _dispatch,
    _VMAP: _vmapped,
    _ENTER: _enter,
    _EXIT: _exit,
    _KEEP: _keep,
    _KEPT: _kept,
    _APPLY: classmethod(_apply),
    **{(torch, name): _asking(name) for name in _QUESTIONS},
}


@contextmanager
def intercepting(handler: CallHandler) -> Iterator[None]:
    """Route this thread's module calls through `handler.on_call(original_call, module, args, kwargs)`, and tell
    `handler.on_autocast(region, entering)`, where there is one, of the autocast regions it enters and leaves, and
    `handler.on_function(call, cls, args, kwargs)` of applied autograd functions, and
    `handler.on_vmap(call, func, args, kwargs)` of calls that `torch.vmap` made, and
    `handler.on_saved_tensors(entering)` of regions whose saved tensors are kept in a way of their own, such as those of
    a checkpoint."""
    global _users
    with _lock:
        if _users == 0:
            # Kept after the end: another thread may have fetched a replacement and not called it yet.
            _originals.update({(owner, name): vars(owner)[name] for owner, name in _REPLACEMENTS})
            for (owner, name), replacement in _REPLACEMENTS.items():
                setattr(owner, name, replacement)
        _users += 1
    _listeners.stack.append(handler)
    try:
        yield
    finally:
        _listeners.stack.pop()
        with _lock:
            _users -= 1
            if _users == 0:
                for (owner, name), original in _originals.items():
                    setattr(owner, name, original)
