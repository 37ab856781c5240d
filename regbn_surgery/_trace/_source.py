"""Where in the user's code are we? The innermost frame outside of torch and of this package."""

from __future__ import annotations

import functools
import os
import sys
from types import CodeType, FrameType

import torch
from torch import nn

from .._types import Source
from ._intercept import intercepted

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_LIBRARY = (_HERE, _TORCH, "<frozen ", "<__array_function__")
_MODULE_CALLS = nn.Module._call_impl.__code__.co_filename
_LISTENER = intercepted.__code__.co_filename
_IMPORTS = "<frozen importlib._bootstrap>"


def current_source() -> Source | None:
    """The innermost line of the user's code, with the user's functions around it within the same module call."""
    frame: FrameType | None = sys._getframe(1)
    frames, inside = [], []
    innermost: FrameType | None = None
    while frame is not None:
        code = frame.f_code
        if is_user_file(code.co_filename):
            innermost = innermost or frame
            frames.append((code, instruction_of(code, frame.f_lasti), frame.f_globals.get("__name__", "")))
        elif innermost is None:
            if code.co_filename.startswith(_TORCH):
                inside.append((code, instruction_of(code, frame.f_lasti)))
        elif code.co_name == "_call_impl" and code.co_filename == _MODULE_CALLS:
            break
        frame = frame.f_back
    if innermost is None:
        return None
    code = innermost.f_code
    instruction = instruction_of(code, innermost.f_lasti)
    return Source(code.co_filename, innermost.f_lineno, code.co_name, instruction, tuple(frames), tuple(inside))


def is_importing() -> bool:
    """Whether a module is being loaded by what the listener called: torch loads much of itself when it is needed, and
    what it computes meanwhile is no part of a model."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != _LISTENER:
        if frame.f_code.co_filename == _IMPORTS:
            return True
        frame = frame.f_back
    return False


@functools.lru_cache(maxsize=4096)
def instruction_of(code: CodeType, offset: int) -> int:
    """The first of the instructions that one call is made of. Which of them a frame points to while the call runs
    differs: the interpreter merges and specialises instructions as it goes, and since 3.12 the compiler repeats what
    follows a conditional expression in each of its branches."""
    instructions = code.co_code
    while offset > 0 and instructions[offset] == 0:  # what the interpreter keeps behind an instruction
        offset -= 2
    return _firsts(code).get(offset // 2, offset // 2) * 2


@functools.lru_cache(maxsize=4096)
def _firsts(code: CodeType) -> dict[int, int]:
    """By the index of an instruction with a place in the file, that of the first one with this very place."""
    first: dict[tuple[int | None, ...], int] = {}
    return {i: first.setdefault(place, i) for i, place in enumerate(code.co_positions()) if None not in place}


def user_frames() -> list[tuple[CodeType, int, str]]:
    """All functions of the user's that run, innermost first: the code, its instruction and the name of its module."""
    frame: FrameType | None = sys._getframe(1)
    frames = []
    while frame is not None:
        if is_user_file(frame.f_code.co_filename):
            frames.append((frame.f_code, frame.f_lasti, frame.f_globals.get("__name__", "")))
        frame = frame.f_back
    return frames


@functools.lru_cache(maxsize=4096)
def is_user_file(filename: str) -> bool:
    """Whether a file is neither torch's nor of this package; code typed at a prompt or generated is the user's."""
    return not filename.startswith(_LIBRARY) and os.sep + "contextlib.py" not in filename


def entering_grad_mode() -> bool:
    """Whether torch is being told a gradient mode for good or on entering a `with`, and not on leaving one."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARY):
        if frame.f_code.co_filename.endswith("grad_mode.py") and frame.f_code.co_name == "__exit__":
            return False
        frame = frame.f_back
    return True


#: Where torch makes classes that stand before a module's own: parametrizations, FSDP2.
_IN_FRONT = ("torch.nn.utils.parametrize", "torch.distributed.")


def kind_of_module(module: nn.Module) -> str:
    """The name of the module's class, whatever torch has put before it (`Linear` for a `ParametrizedLinear`); `RegBN`
    for each class that is derived from one of that name."""
    names = [cls.__name__ for cls in type(module).__mro__ if not cls.__module__.startswith(_IN_FRONT)]
    return "RegBN" if "RegBN" in names else names[0]
