"""What `torch.compile` must not look into, said without importing the compiler: that takes longer than torch itself."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def outside_graphs(function: Callable[P, T]) -> Callable[P, T]:
    """`torch.compiler.disable`, which imports torch._dynamo when it decorates; here it is asked when something is, or
    has been, compiled in this process."""
    disabled: Callable[P, T] = torch._disable_dynamo(function)  # type: ignore[attr-defined]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def constant_in_graphs(function: Callable[[], T]) -> Callable[[], T]:
    """`torch.compiler.assume_constant_result`, which does no more than this, and imports torch._dynamo for it."""
    marked: Any = function
    marked._dynamo_marked_constant = True
    return function
