"""Where in the user's code are we? The innermost frame outside of torch and of this package."""

from __future__ import annotations

import os
import sys
from types import FrameType

import torch
from torch import nn

from .._types import Source

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_LIBRARY = (_HERE, _TORCH, "<")


def current_source() -> Source | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if is_user_file(filename):
            return Source(filename, frame.f_lineno, frame.f_code.co_name, frame.f_lasti)
        frame = frame.f_back
    return None


def is_user_file(filename: str) -> bool:
    """Whether a file is neither torch's nor of this package."""
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
    """The name of the module's class, whatever torch has put before it (`Linear` for a `ParametrizedLinear`)."""
    return next(cls.__name__ for cls in type(module).__mro__ if not cls.__module__.startswith(_IN_FRONT))
