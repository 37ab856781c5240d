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
        f"{where} reads a value out of a tensor, which is {_short(found)} now; the rewritten forward was captured "
        f"where it was {_short(captured)}, and holds for that value only. Let the code depend on tensors (torch.where, "
        "tensor arithmetic), or put RegBN at a fusion point of another module."
    )


def _equal(found: Any, captured: Any) -> bool:
    if hasattr(captured, "shape"):
        return bool(found.shape == captured.shape and torch.equal(torch.as_tensor(found), torch.as_tensor(captured)))
    return bool(found == captured or (found != found and captured != captured))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
