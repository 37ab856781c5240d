"""Are two outputs of a model the same? The question that every rewrite has to answer before it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import _tree

#: Differences that reordered floating-point sums may make; a rewrite with identity in place of RegBN stays far below.
RTOL, ATOL = 1e-5, 1e-6


def difference(expected: Any, found: Any) -> str | None:
    """None for equal structures of equal values, else where and how they differ, in words."""
    return difference_of_values(list(_tree.leaves(expected)), list(_tree.leaves(found)))


def difference_of_values(ours: Sequence[tuple[str, Any]], theirs: Sequence[tuple[str, Any]]) -> str | None:
    """The same of outputs that are given as their values by name."""
    if [name for name, _ in ours] != [name for name, _ in theirs]:
        names = {name for name, _ in ours} ^ {name for name, _ in theirs}
        return f"the outputs have another structure ({', '.join(sorted(names)) or 'other order'})"
    for (name, a), (_, b) in zip(ours, theirs, strict=True):
        where = f"output `{name}`" if name else "the output"
        if isinstance(a, torch.Tensor) != isinstance(b, torch.Tensor):
            return f"{where} is {type(b).__name__} instead of {type(a).__name__}"
        if isinstance(a, torch.Tensor):
            wrong = _tensors(a, b)
            if wrong is not None:
                return f"{where} {wrong}"
        elif isinstance(a, bool | int | float | str | type(None)) and a != b and not (a != a and b != b):
            return f"{where} is {b!r} instead of {a!r}"
    return None


def _tensors(a: torch.Tensor, b: torch.Tensor) -> str | None:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"is {b.dtype} {list(b.shape)} instead of {a.dtype} {list(a.shape)}"
    if a.device.type == "meta" or a.layout is not torch.strided:
        return None
    if a.dtype.is_floating_point or a.dtype.is_complex:
        if torch.allclose(a, b, rtol=RTOL, atol=ATOL, equal_nan=True):
            return None
        both = a.isnan() & b.isnan()
        worst = (a - b).abs().masked_fill(both, 0).nan_to_num(nan=float("inf")).max().item()
        return f"differs by up to {worst:.3g}"
    return None if torch.equal(a, b) else "holds other values"
