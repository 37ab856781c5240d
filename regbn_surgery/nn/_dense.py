"""The running projection kept whole: its change is measured tile by tile, never beside a second W.

One workspace of fixed size holds the tiles in turn. Whatever it still holds when the size of the change is known
(the last tile) need not be formed again for the update; for a W no larger than the workspace that is all of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._linalg import accumulation_dtype, gram

#: Elements of the workspace (4 MiB in float32), and the widest tile: large enough for efficient matrix products.
#: Measured with benchmarks/regbn_step.py; a GPU wants fewer, larger products.
WORKSPACE = {"cpu": 1 << 20}
WORKSPACE_ELSEWHERE = 1 << 22
TILE_COLUMNS = 4096
SUMMED_AT_ONCE = 1 << 18  # elements whose absolute values are taken in a core's own cache


class DenseUpdate:
    """One step of `W <- (1 - share) W + share left.T @ right` in two calls, for `left` [b, m] and `right` [b, n].

    `change()` gives `mean |left.T @ right - W|`, from which the caller derives the share that `move` takes.
    Nothing of W may change in between. Without gradient.
    """

    def __init__(self, W: Tensor, left: Tensor, right: Tensor) -> None:
        self.W, self.left, self.right = W, left, right
        rows, columns = W.shape
        size = WORKSPACE.get(W.device.type, WORKSPACE_ELSEWHERE)
        self.width = min(columns, TILE_COLUMNS)
        self.height = max(1, min(rows, size // self.width))
        # Rows from here on are a single tile of the full width, which the workspace keeps; none if it is too narrow.
        self.kept_from = rows - self.height if self.width == columns else rows
        self.kept: Tensor | None = None

    def change(self) -> Tensor:
        """`mean |left.T @ right - W|`, 0-dimensional."""
        rows, columns = self.W.shape
        workspace = self.W.new_empty(self.height * self.width)
        height = max(1, self.height // 2)  # what is not kept is summed sooner, while it is in the cache
        totals = []
        for top in range(0, self.kept_from, height):
            bottom = min(top + height, self.kept_from)
            for start in range(0, columns, self.width):
                tile = self._difference(workspace, top, bottom, start, min(start + self.width, columns))
                totals.append(tile.abs_().sum())
        if self.kept_from < rows:
            self.kept = self._difference(workspace, self.kept_from, rows, 0, columns)
            totals += [part.abs().sum() for part in torch.split(self.kept.view(-1), SUMMED_AT_ONCE)]
        total = totals[0] if len(totals) == 1 else torch.stack(totals).sum()
        return total / self.W.numel()

    def move(self, share: Tensor | float) -> None:
        """Move W by `share`, a 0-dimensional tensor where the host must not know it."""
        top, bottom = self.W[: self.kept_from], self.W[self.kept_from :]
        left = self.left[:, : self.kept_from].mT
        if self.kept is not None:  # holds W - W_batch
            if isinstance(share, float):
                bottom.sub_(self.kept, alpha=share)
            else:
                bottom.sub_(self.kept.mul_(share))
        if isinstance(share, float):
            top.addmm_(left, self.right, beta=1.0 - share, alpha=share)
        else:
            top.mul_(1.0 - share).addmm_(left, self.right * share)

    def neutralise_unless(self, finite: Tensor) -> None:
        """Before a `move` by 0: keep what is not finite from reaching W."""
        self.left, self.right = torch.where(finite, self.left, 0.0), torch.where(finite, self.right, 0.0)
        self.kept = None if self.kept is None else torch.where(finite, self.kept, 0.0)

    def _difference(self, workspace: Tensor, top: int, bottom: int, start: int, stop: int) -> Tensor:
        """`W - left.T @ right` of a tile, in the workspace (a compiler has its own ideas of memory)."""
        tile = self.W[top:bottom, start:stop]
        left, right = self.left[:, top:bottom].mT, self.right[:, start:stop]
        if torch.compiler.is_compiling():
            return torch.addmm(tile, left, right, alpha=-1.0)
        out = workspace[: tile.numel()].view(tile.shape)
        torch.addmm(tile, left, right, alpha=-1.0, out=out)
        return out


class RmsUpdate(DenseUpdate):
    """The same with `||left.T @ right - W||_F / sqrt(mn)` for the size, by `||W||^2 - 2 <W, W_batch> + ||W_batch||^2`.

    Only the middle term goes through W_batch, tile by tile; the others are a norm and a product of Gram matrices. The
    sums are float64's, the products of a tile its own precision's.
    """

    def __init__(self, W: Tensor, left: Tensor, right: Tensor) -> None:
        super().__init__(W, left, right)
        self.width = W.shape[1]  # whole rows, which lie one after the other
        self.height = max(1, min(len(W), WORKSPACE.get(W.device.type, WORKSPACE_ELSEWHERE) // self.width))
        self.kept_from = len(W) - self.height

    def change(self) -> Tensor:
        wide = accumulation_dtype(self.W.device)
        workspace = self.W.new_empty(self.height * self.width)
        shared = []
        height = max(1, self.height // 2)
        for top in range(0, self.kept_from, height):
            bottom = min(top + height, self.kept_from)
            tile = self._batch_rows(workspace, top, bottom)
            shared.append(torch.dot(tile.view(-1), self.W[top:bottom].view(-1)))
        self.kept = self._batch_rows(workspace, self.kept_from, len(self.W))
        shared.append(torch.dot(self.kept.view(-1), self.W[self.kept_from :].view(-1)))
        own = torch.linalg.vector_norm(self.W).to(wide).square()
        target = (gram(self.left) * gram(self.right)).sum()
        square: Tensor = own - 2.0 * torch.stack(shared).sum(dtype=wide) + target
        return (square.clamp_min(0.0) / self.W.numel()).sqrt().to(self.W.dtype)

    def move(self, share: Tensor | float) -> None:
        """Move W by `share`; here `kept` holds the last rows of W_batch."""
        kept, self.kept = self.kept, None
        super().move(share)
        if kept is not None:
            self.W[self.kept_from :].lerp_(kept, share)

    def _batch_rows(self, workspace: Tensor, top: int, bottom: int) -> Tensor:
        left = self.left[:, top:bottom].mT
        if torch.compiler.is_compiling():
            return left @ self.right
        out = workspace[: (bottom - top) * self.width].view(bottom - top, self.width)
        torch.mm(left, self.right, out=out)
        return out


class PrimalUpdate:
    """The same for a W_batch that is at hand as `target` [m, n] because it is smaller than f (the primal form)."""

    def __init__(self, W: Tensor, target: Tensor, rms: bool = False) -> None:
        self.W, self.target, self.rms = W, target, rms

    def change(self) -> Tensor:
        if self.rms:
            difference: Tensor = torch.linalg.vector_norm(self.W - self.target, dtype=accumulation_dtype(self.W.device))
            return (difference / math.sqrt(self.W.numel())).to(self.W.dtype)
        return (self.W - self.target).abs_().mean()

    def neutralise_unless(self, finite: Tensor) -> None:
        self.target = torch.where(finite, self.target, 0.0)

    def move(self, share: Tensor | float) -> None:
        self.W.lerp_(self.target, share)
