"""What a generated forward asks itself while it runs: is this value still the one that the graph was made for?"""

from __future__ import annotations

from typing import Any

import torch

from .._errors import UnseenCallError


def expect_value(found: Any, captured: Any, where: str) -> None:
    """A value that the user's code reads out of a tensor decides what it does next, which a graph cannot follow.

    Raises:
        UnseenCallError: where the value is not the captured one.
    """
    if _equal(found, captured):
        return
    raise UnseenCallError(
        f"{where} reads the value of a tensor: it is {_short(found)} now, but was {_short(captured)} when the "
        "rewritten forward was captured, which is valid for that value only. Use tensor operations instead "
        "(torch.where, tensor arithmetic), or put RegBN at a fusion point of another module."
    )


def _equal(found: Any, captured: Any) -> bool:
    if hasattr(captured, "shape"):
        return bool(found.shape == captured.shape and torch.equal(torch.as_tensor(found), torch.as_tensor(captured)))
    return bool(found == captured or (found != found and captured != captured))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
