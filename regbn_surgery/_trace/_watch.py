"""Notice what a module's own forward reads from and keeps on itself.

A graph bakes `self.alpha` into a constant and forgets `self.last_attention = weights`. While a host is captured its
class is exchanged for one that reports both, so that the first becomes a guard and the second a second result.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .. import _tree
from .._state import is_generator, is_plain_object, slots_of
from .._undo import later, undone
from ._subclass import quiet_subclass

if TYPE_CHECKING:
    from ._recorder import Recorder

_PLAIN = (int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device, enum.Enum)
_MACHINERY = frozenset(nn.Module().__dict__) - {"training"}
#: Of the modules in a root: `training` is in the key of a call, and a forward is looked up only to be called.
_UNASKED = _MACHINERY | {"training", "forward"}
_DEPTH = 3
#: Objects with more fields than this (the configuration of a whole model family) are known by identity alone.
_MANY = 32


ABSENT = ("absent",)


def token(value: Any, depth: int = 0) -> Any:
    """What must stay the same about an attribute for a graph to hold: the value of a plain one, the kind of a tensor,
    the content of a container, the identity of anything else."""
    if isinstance(value, _PLAIN):
        return (type(value).__name__, value)
    if isinstance(value, torch.Tensor):
        # An attribute is read anew at each call; a tensor in a list is a constant of the graph.
        return ("tensor", value.dim(), value.dtype) if depth == 0 else ("object", id(value))
    if isinstance(value, list | tuple | set | frozenset | deque) and depth < _DEPTH:
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return (type(value).__name__, tuple(token(item, depth + 1) for item in items))
    if isinstance(value, dict) and depth < _DEPTH:
        return ("dict", tuple((repr(key), token(item, depth + 1)) for key, item in value.items()))
    if isinstance(value, np.ndarray):
        return ("array", id(value), str(value.dtype), value.shape, hash(value.tobytes()))
    if is_plain_object(value) and depth < _DEPTH - 1 and len(vars(value)) <= _MANY:
        return (
            "fields",
            type(value).__qualname__,
            tuple((key, token(item, depth + 1)) for key, item in vars(value).items()),
        )
    slots = slots_of(value) if depth < _DEPTH - 1 else None
    if slots is not None:
        return ("fields", type(value).__qualname__, tuple((key, token(item, depth + 1)) for key, item in slots.items()))
    return ("object", id(value))


#: The setting that stands for what decides the types of numbers; no attribute has such a name.
NUMERICS = "<numerics>"


def numerics(root: nn.Module) -> tuple[Any, ...]:
    """What decides of which type the results of layers are, beside the arguments: a graph holds the types that the
    forward has asked for."""
    regions = tuple(
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None for kind in ("cpu", "cuda")
    )
    own = next((parameter.dtype for parameter in root.parameters()), None)
    # A compiled call cannot ask for inference mode, and is taken for one outside of it.
    inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    return (*regions, inference, torch.get_default_dtype(), own)


def attribute_token(root: nn.Module, name: str) -> Any:
    """The token of an attribute of `root`, or of a module in it by dotted path; or of `NUMERICS`."""
    if name == NUMERICS:
        return numerics(root)
    path, _, last = name.rpartition(".")
    try:
        value = getattr(root.get_submodule(path) if path else root, last)
    except AttributeError:
        return ABSENT
    return token(value)


@contextmanager
def watched(module: nn.Module, recorder: Recorder) -> Iterator[None]:
    cls: Any = type(module)

    def read(self: nn.Module, name: str) -> Any:
        value = cls.__getattribute__(self, name)
        if self is module and name not in _MACHINERY and not name.startswith("__"):
            held = cls.__getattribute__(self, "__dict__")
            # Class attributes that are plain may be overlaid on the instance at any time; methods are none of ours.
            if name in held or isinstance(value, _PLAIN):
                _note(recorder, name, value)
        return value

    def missing(self: nn.Module, name: str) -> Any:
        """Buffers, parameters and children; what the class forwards to somebody else; and what is not there yet."""
        try:
            value = cls.__getattr__(self, name)
        except AttributeError:
            if self is module and not name.startswith("__"):
                recorder.on_setting(name, ABSENT)
            raise
        if self is module and (isinstance(value, _PLAIN) or name in self._buffers):
            recorder.on_setting(name, token(value))
        return value

    def write(self: nn.Module, name: str, value: Any) -> None:
        cls.__setattr__(self, name, value)
        if self is module:
            recorder.on_store(name, value)

    body = {"__getattribute__": read, "__getattr__": missing, "__setattr__": write}
    before = _attributes(module)
    object.__setattr__(module, "__class__", quiet_subclass(cls, body))
    try:
        with _children_watched(module, recorder):
            yield
    finally:
        object.__setattr__(module, "__class__", cls)
        after = _attributes(module)
        unseen = {name: before.get(name, ABSENT) for name in (before | after) if before.get(name) != after.get(name)}
        for name, known in (recorder.settings | unseen).items():
            if name not in recorder.stores and attribute_token(module, name) != known:
                recorder.mutated.append(name)


def _note(recorder: Recorder, name: str, value: Any) -> None:
    recorder.on_setting(name, token(value))
    if recorder.recording:
        held = vars(value) if is_plain_object(value) else value
        recorder.kept += [value, *(leaf for _, leaf in _tree.leaves(held) if not isinstance(leaf, _PLAIN))]
    steps_on = hasattr(type(value), "__next__") or (is_generator(value) and not isinstance(value, torch.Generator))
    if steps_on and recorder.recording:
        recorder.mutated.append(name)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: token(value) for name, value in vars(module).items() if name not in _MACHINERY}


class _Watchers(threading.local):
    def __init__(self) -> None:
        self.stack: list[tuple[nn.Module, Recorder]] = []


_watchers = _Watchers()
_lock = threading.RLock()
_watching: set[object] = set()
#: What stood on `nn.Module` when ours took its place: another library may have put its own there since the import.
_originals: dict[str, Any] = {"__getattribute__": object.__getattribute__, "__setattr__": nn.Module.__setattr__}
_own: dict[str, Any] = {}  # those of them that are on the class itself


def _path_of(module: nn.Module, root: nn.Module, recorder: Recorder) -> str | None:
    """Of a module in the root whose own forward is not running; that of one that is looked into is the root's."""
    path = recorder.paths.get(id(module)) if module is not root and recorder.recording else None
    return path if path and recorder.leaf(module, path) else None


def _read_of_any(self: nn.Module, name: str) -> Any:
    value = _originals["__getattribute__"](self, name)
    if _watchers.stack and name not in _UNASKED and not name.startswith("__"):
        root, recorder = _watchers.stack[-1]
        path = _path_of(self, root, recorder)
        if path and (isinstance(value, _PLAIN) or name in object.__getattribute__(self, "__dict__")):
            _note(recorder, f"{path}.{name}", value)
    return value


def _write_of_any(self: nn.Module, name: str, value: Any) -> None:
    if _watchers.stack:
        root, recorder = _watchers.stack[-1]
        path = _path_of(self, root, recorder)
        if path:
            recorder.on_setting(f"{path}.{name}", attribute_token(self, name))
    _originals["__setattr__"](self, name, value)


_OURS = {"__getattribute__": _read_of_any, "__setattr__": _write_of_any}


@contextmanager
def _children_watched(root: nn.Module, recorder: Recorder) -> Iterator[None]:
    """What the root's own forward reads from, and keeps on, the modules in it.

    Reading goes through one attribute of `nn.Module` for the whole process, exchanged as `_intercept` does with calls.
    """
    token, depth = object(), len(_watchers.stack)

    def stop() -> None:
        del _watchers.stack[depth:]
        with _lock:
            _watching.discard(token)
            for name, ours in _OURS.items() if not _watching else ():
                if vars(nn.Module).get(name) is not ours:
                    continue
                if name in _own:
                    setattr(nn.Module, name, _own[name])
                else:
                    delattr(nn.Module, name)

    entry = later(stop)
    try:
        with _lock:
            _watching.add(token)
            for name, ours in _OURS.items():
                found = getattr(nn.Module, name)
                if found is not ours:
                    _originals[name] = found
                    _own.pop(name, None)
                    if name in vars(nn.Module):
                        _own[name] = found
                    setattr(nn.Module, name, ours)
        _watchers.stack.append((root, recorder))
        yield
    finally:
        undone(entry)
