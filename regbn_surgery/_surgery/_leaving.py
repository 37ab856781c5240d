"""Leave a function mode of ours for a while, so that what a host's children do is not looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch.overrides import _pop_mode_temporarily


class Leavable(Protocol):
    inside: bool


@contextmanager
def leaving(mode: Leavable) -> Iterator[None]:
    """Out of the host's frame: nothing is watched, and children run at full speed."""
    stack: list[Any] = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    on_top = bool(stack) and stack[-1] is mode  # while torch asks the mode, it is off the stack already
    before, mode.inside = mode.inside, True
    try:
        with _pop_mode_temporarily() if on_top else nullcontext():
            yield
    finally:
        mode.inside = before
