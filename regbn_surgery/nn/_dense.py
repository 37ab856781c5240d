"""The running projection kept whole: its change is measured tile by tile, never beside a second W."""

from __future__ import annotations

import torch
from torch import Tensor

#: Elements of W in one tile, and its columns: large enough for an efficient matrix product, small beside any W
#: that is worth the trouble. Measured with benchmarks/regbn_step.py; a GPU wants fewer, larger products.
TILE = {"cpu": 1 << 19}
TILE_ELSEWHERE = 1 << 22
TILE_COLUMNS = 4096


def tiles(rows: int, columns: int, size: int) -> list[tuple[int, int, int, int]]:
    """`(row, row stop, column, column stop)` of tiles of at most `size` elements that cover a matrix."""
    width = min(columns, TILE_COLUMNS)
    height = max(1, min(rows, size // width))
    return [
        (row, min(row + height, rows), column, min(column + width, columns))
        for row in range(0, rows, height)
        for column in range(0, columns, width)
    ]


def mean_absolute_change(W: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`mean |left.T @ right - W|` for `left` [b, m], `right` [b, n], `W` [m, n]; 0-dimensional, without gradient."""
    size = TILE.get(W.device.type, TILE_ELSEWHERE)
    compiling = torch.compiler.is_compiling()
    scratch = None if compiling else W.new_empty(min(size, W.numel()))
    totals = []
    for row, row_stop, column, column_stop in tiles(*W.shape, size):
        tile, a, b = W[row:row_stop, column:column_stop], left[:, row:row_stop].mT, right[:, column:column_stop]
        if scratch is None:
            part = torch.addmm(tile, a, b, alpha=-1.0)
        else:
            part = scratch[: tile.numel()].view(tile.shape)
            torch.addmm(tile, a, b, alpha=-1.0, out=part)
        totals.append(part.abs_().sum())
    total = totals[0] if len(totals) == 1 else torch.stack(totals).sum()
    return total / W.numel()


def move_towards(W: Tensor, left: Tensor, right: Tensor, share: Tensor) -> None:
    """`W <- (1 - share) W + share left.T @ right`, in place, without gradient."""
    W.mul_(1.0 - share).addmm_(left.mT, right * share)
