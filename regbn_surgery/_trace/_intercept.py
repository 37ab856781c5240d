"""Let one thread listen to its module calls, autocast regions and the like, and put everything back.

`nn.Module.__call__` is one class attribute for the whole process (and so are the others), so a replacement that this
thread and others run through asks a thread-local stack who is listening. A replacement holds what it replaced; whether
one stands at a place is read from what stands there, so that no count can get out of step.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
import torch._functorch.apis
from torch import nn
from torch.overrides import TorchFunctionMode, _push_mode

from .._undo import guarded, later, undone

Result = TypeVar("Result")
Place = tuple[Any, str]


class CallHandler(Protocol):
    """Who listens. Beside `on_call` these are called where they are there:

    `on_autocast(region, entering)`, `on_function(call, cls, args, kwargs)` for applied autograd functions,
    `on_vmap(call, func, args, kwargs)` for calls that `torch.vmap` made, `on_saved_tensors(entering)` for regions whose
    saved tensors are kept in a way of their own, such as those of a checkpoint, and `on_asked()` for questions to torch
    about its settings.
    """

    def on_call(
        self, call: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any: ...


class _Listeners(threading.local):
    def __init__(self) -> None:
        self.stack: list[CallHandler] = []


_listeners = _Listeners()
_lock = threading.RLock()
#: One for each time that somebody listens, with the thread.
_live: dict[object, threading.Thread] = {}
#: The replacement that was made last for each place; older ones that somebody still holds only call what they replaced.
_latest: dict[Place, Any] = {}
#: Under this name a replacement holds itself and what it replaced (`functools.wraps` copies it to another's wrapper).
_REPLACED = "_regbn_replaced"


def _listener(place: Place, replacement: Any, method: str) -> Callable[..., Any] | None:
    """What this thread's listener does at `place`, or None."""
    if not _listeners.stack or _latest.get(place) is not replacement:
        return None
    return getattr(_listeners.stack[-1], method, None)


def _calling(place: Place, original: Any) -> Any:
    def __call__(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        listen = _listener(place, __call__, "on_call")
        return original(module, *args, **kwargs) if listen is None else listen(original, module, args, kwargs)

    return __call__


def _telling(place: Place, original: Any, method: str, entering: bool, named: bool) -> Any:
    """A method of a context manager; the listener hears of it after it was done, with the manager if `named`."""

    def tell(manager: Any, *exc: Any) -> Any:
        result = original(manager, *exc)
        listen = _listener(place, tell, method)
        if listen is not None:
            listen(*((manager,) if named else ()), entering)
        return result

    return tell


def _applying(place: Place, original: Any) -> Any:
    def apply(cls: Any, /, *args: Any, **kwargs: Any) -> Any:
        if not _live and torch.compiler.is_compiling():
            return cls.apply(*args, **kwargs)  # captured code holds on to this one: let dynamo see the function itself
        call = original.__get__(None, cls)  # of Python's making or, since torch 2.14, of C's
        listen = _listener(place, replacement, "on_function")
        return call(*args, **kwargs) if listen is None else listen(call, cls, args, kwargs)

    replacement = classmethod(apply)
    return replacement


def _mapping(place: Place, original: Any) -> Any:
    def vmap_impl(
        func: Any, in_dims: Any, out_dims: Any, randomness: str, chunk_size: Any, *args: Any, **kwargs: Any
    ) -> Any:
        call = functools.partial(original, func, in_dims, out_dims, randomness, chunk_size)
        listen = _listener(place, vmap_impl, "on_vmap")
        return call(*args, **kwargs) if listen is None else listen(call, func, args, kwargs)

    return vmap_impl


class _Asking:
    """A question to torch about its settings, which no function mode hears of.

    Equal to the function that it stands for: dynamo, where it is imported while somebody listens, makes tables of such
    functions, and looks the function itself up in them later.
    """

    def __init__(self, place: Place, original: Any) -> None:
        self.place = place
        self.original = original
        self.__name__ = original.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        listen = _listener(self.place, self, "on_asked")
        if listen is not None:
            listen()
        return self.original(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.original

    def __hash__(self) -> int:
        return hash(self.original)


def _told(method: str, entering: bool, named: bool) -> Callable[[Place, Any], Any]:
    return functools.partial(_telling, method=method, entering=entering, named=named)


_HOOKS = torch.autograd.graph.saved_tensors_hooks
_MAKERS: dict[Place, Callable[[Place, Any], Any]] = {
    (nn.Module, "__call__"): _calling,
    (torch._functorch.apis, "vmap_impl"): _mapping,
    (torch.autocast, "__enter__"): _told("on_autocast", entering=True, named=True),
    (torch.autocast, "__exit__"): _told("on_autocast", entering=False, named=True),
    (_HOOKS, "__enter__"): _told("on_saved_tensors", entering=True, named=False),
    (_HOOKS, "__exit__"): _told("on_saved_tensors", entering=False, named=False),
    (torch.autograd.Function, "apply"): _applying,
    **{(torch, name): _Asking for name in ("is_autocast_enabled", "get_autocast_dtype", "is_inference_mode_enabled")},
}


def _beneath(found: Any) -> Any:
    """What a replacement has replaced; `found` itself where it is none of ours."""
    replacement, original = getattr(found, "__dict__", {}).get(_REPLACED, (None, None))
    return _beneath(original) if replacement is found else found


def _install() -> None:
    for place, make in _MAKERS.items():
        owner, name = place
        found = vars(owner)[name]
        if _latest.get(place) is not found:
            original = _beneath(found)
            replacement = make(place, original)
            replacement.__dict__[_REPLACED] = (replacement, original)
            _latest[place] = replacement
            setattr(owner, name, replacement)


def _remove() -> None:
    """Put back what ours stand in place of. Another library's, put there meanwhile, is left as it is."""
    for owner, name in _MAKERS:
        found = vars(owner)[name]
        original = _beneath(found)
        if original is not found:
            setattr(owner, name, original)


def _listen(handler: CallHandler, token: object) -> None:
    _live[token] = threading.current_thread()
    _install()
    _listeners.stack.append(handler)


def _leave(token: object) -> None:
    _live.pop(token, None)
    for other, thread in list(_live.items()):
        if not thread.is_alive():
            _live.pop(other, None)
    if not _live:
        _remove()


def listening() -> CallHandler | None:
    """Who listens to this thread's calls just now: a listener inside hands module calls on to it."""
    return _listeners.stack[-1] if _listeners.stack else None


def _locked(change: Callable[[], None]) -> None:
    try:
        try:
            _lock.acquire()
            change()
        finally:
            _unlock()
    finally:
        _unlock()


def _unlock() -> None:
    while _lock._is_owned():  # type: ignore[attr-defined]
        _lock.release()


def _stop(token: object, depth: int) -> None:
    del _listeners.stack[depth:]
    _locked(functools.partial(_leave, token))


def intercepted(handler: CallHandler, run: Callable[[], Result], mode: TorchFunctionMode | None = None) -> Result:
    """The result of `run`, during which `handler` hears what this thread does: see `CallHandler`.

    `mode` is active meanwhile; `guarded` takes it off the stack, where a `with` would fail after an interrupt.
    """

    def listening() -> Result:
        token = object()
        later(functools.partial(_stop, token, len(_listeners.stack)))
        _locked(functools.partial(_listen, handler, token))
        if mode is not None:
            _push_mode(mode)  # type: ignore[no-untyped-call]
        return run()

    return guarded(listening)


@contextmanager
def intercepting(handler: CallHandler) -> Iterator[None]:
    """`intercepted` for the time of a `with`, which has to lie within something `guarded`."""
    token = object()
    entry = later(functools.partial(_stop, token, len(_listeners.stack)))
    try:
        _locked(functools.partial(_listen, handler, token))
        yield
    finally:
        undone(entry)
