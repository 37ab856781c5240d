"""The running projection kept whole: its change measured and applied in row blocks, never beside a second W."""

from __future__ import annotations

import torch
from torch import Tensor

#: Elements of W handled at a time: small enough for a core's own cache, large enough for one matrix product.
BLOCK = 1 << 16


def row_blocks(rows: int, columns: int) -> list[tuple[int, int]]:
    """The (start, stop) of row blocks of about `BLOCK` elements each."""
    height = max(1, min(rows, BLOCK // max(columns, 1)))
    return [(start, min(start + height, rows)) for start in range(0, rows, height)]


@torch.no_grad()
def mean_absolute_change(W: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`mean |left.T @ right - W|` for `left` [b, m], `right` [b, n], `W` [m, n]; 0-dimensional."""
    blocks = row_blocks(*W.shape)
    scratch = W.new_empty((blocks[0][1] - blocks[0][0], W.shape[1]))
    totals = []
    for start, stop in blocks:
        part = scratch[: stop - start]
        torch.mm(left[:, start:stop].mT, right, out=part)
        totals.append(part.sub_(W[start:stop]).abs_().sum())
    return torch.stack(totals).sum() / W.numel()


@torch.no_grad()
def move_towards(W: Tensor, left: Tensor, right: Tensor, share: Tensor) -> None:
    """`W <- (1 - share) W + share left.T @ right`, in place, row block by row block."""
    scaled = right * share.to(right.dtype)
    kept = (1.0 - share).to(W.dtype)
    for start, stop in row_blocks(*W.shape):
        W[start:stop].mul_(kept).addmm_(left[:, start:stop].mT, scaled)
