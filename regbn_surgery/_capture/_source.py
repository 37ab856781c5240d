"""Where in the user's code are we? The innermost frame outside of torch and of this package."""

from __future__ import annotations

import os
import sys

import torch

from .._types import Source

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_LIBRARY = (_HERE, _TORCH, "<")


def current_source() -> Source | None:
    frame = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if not filename.startswith(_LIBRARY) and os.sep + "contextlib.py" not in filename:
            return Source(filename, frame.f_lineno, frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return None
