"""Run a function without gradients, so that an interrupt at any moment leaves the gradient mode as it was."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
Result = TypeVar("Result")


def without_gradient(function: Callable[P, Result]) -> Callable[P, Result]:
    """A decorator like `torch.no_grad()`.

    An interrupt (Ctrl-C) that comes while torch's own enters or leaves its `with` switches gradients off for good: the
    mode is changed in Python functions that nothing protects. Here it is put back twice, since an interrupt comes once:
    before the first time or after it.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Result:
        if torch.compiler.is_compiling():  # which knows torch's own
            with torch.no_grad():
                return function(*args, **kwargs)
        before, put_back = torch.is_grad_enabled(), torch._C._set_grad_enabled
        try:
            try:
                put_back(False)
                return function(*args, **kwargs)
            finally:
                put_back(before)
        finally:
            put_back(before)

    return run
