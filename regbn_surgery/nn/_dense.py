"""The running projection kept whole: its change is measured tile by tile, never beside a second W.

One workspace of fixed size holds the tiles in turn (on the host: other devices and compilers have their own ways with
memory that is free again). Whatever it still holds when the size of the change is known
(the last tile) need not be formed again for the update; for a W no larger than the workspace that is all of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._linalg import accumulation_dtype, gram, values_at_hand
from ._workspace import borrow, give_back

#: Elements of the workspace (8 MiB in float32; a GPU wants fewer, larger products) and the widest tile. Whole rows
#: are the fastest to multiply and to read. Measured with benchmarks/regbn_step.py.
WORKSPACE = {"cpu": 1 << 21}
WORKSPACE_ELSEWHERE = 1 << 22
TILE_COLUMNS = 1 << 16
SUMMED_AT_ONCE = 1 << 18  # elements whose absolute values are taken in a core's own cache


class DenseUpdate:
    """One step of `W <- (1 - share) W + share left.T @ right` in two calls, for `left` [b, m] and `right` [b, n].

    `change()` gives `mean |left.T @ right - W|`, from which the caller derives the share that `move` takes.
    Nothing of W may change in between. Without gradient.
    """

    def __init__(self, W: Tensor, left: Tensor, right: Tensor) -> None:
        self.W, self.left, self.right = W, left, right
        rows, columns = W.shape
        self.width = self._widest(columns)
        size = WORKSPACE.get(W.device.type, WORKSPACE_ELSEWHERE)
        self.height = max(1, min(rows, size // self.width))
        self.at_once = min(SUMMED_AT_ONCE, self.height * self.width)
        # Rows from here on are a single tile of the full width, which the workspace keeps; none if it is too narrow.
        self.kept_from = rows - self.height if self.width == columns else rows
        self.kept: Tensor | None = None
        self.workspace: Tensor | None = None

    def change(self) -> Tensor:
        """`mean |left.T @ right - W|`, 0-dimensional."""
        return self._sum_over_tiles() / self.W.numel()

    def move(self, share: Tensor | float) -> None:
        """Move W by `share`, a 0-dimensional tensor where the host must not know it."""
        top, bottom = self.W[: self.kept_from], self.W[self.kept_from :]
        left = self.left[:, : self.kept_from].mT
        if self.kept is not None:
            self._move_kept(bottom, self.kept, share)
        if self.kept_from and isinstance(share, float):
            top.addmm_(left, self.right, beta=1.0 - share, alpha=share)
        elif self.kept_from:
            top.mul_(1.0 - share).addmm_(left, self.right * share)
        if self.workspace is not None:
            give_back(self.workspace)
        self.workspace = self.kept = None

    def neutralise_if(self, skipped: Tensor) -> None:
        """Before a `move` by 0, after `change`: keep what is not finite from reaching W."""
        if self.kept_from:
            self.left, self.right = self.left.masked_fill(skipped, 0.0), self.right.masked_fill(skipped, 0.0)
        self.kept = None if self.kept is None else self.kept.masked_fill(skipped, 0.0)

    def _widest(self, columns: int) -> int:
        return min(columns, TILE_COLUMNS)

    def _sum_over_tiles(self) -> Tensor:
        """The sum of `_measure` over all of W. The tile that is kept comes last."""
        rows, columns = self.W.shape
        workspace = None
        if values_at_hand(self.W):
            workspace = self.workspace = borrow(self.height * self.width + self.at_once, self.W.dtype)
        totals: list[Tensor] = []
        for top in range(0, self.kept_from, self.height):
            bottom = min(top + self.height, self.kept_from)
            for start in range(0, columns, self.width):
                tile = self.W[top:bottom, start : start + self.width]
                right = self.right[:, start : start + self.width]
                totals += self._measure(self._fill(workspace, tile, self.left[:, top:bottom].mT, right), tile)
        if self.kept_from < rows:
            tile = self.W[self.kept_from :]
            self.kept = self._fill(workspace, tile, self.left[:, self.kept_from :].mT, self.right)
            totals += self._measure(self.kept, tile)
        return totals[0] if len(totals) == 1 else torch.stack(totals).sum()

    def _fill(self, workspace: Tensor | None, tile: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """`tile - left @ right`, in the workspace where there is one."""
        if workspace is None:
            return torch.addmm(tile, left, right, alpha=-1.0)
        out = _room(workspace, self.at_once, tile)
        torch.addmm(tile, left, right, alpha=-1.0, out=out)
        return out

    def _measure(self, filled: Tensor, tile: Tensor) -> list[Tensor]:
        """The sums of the absolute values of the parts of `filled`, whose own values stay."""
        if self.workspace is None:
            return [torch.linalg.vector_norm(filled, 1)]
        parts = torch.split(filled.view(-1), self.at_once)
        return [torch.abs(part, out=self.workspace[: len(part)]).sum() for part in parts]

    def _move_kept(self, rows: Tensor, kept: Tensor, share: Tensor | float) -> None:
        """Move these rows of W by `share`, with what `_fill` gave for them."""
        if isinstance(share, float):
            rows.sub_(kept, alpha=share)
        else:
            rows.addcmul_(kept, share, value=-1.0)


def _room(workspace: Tensor, after: int, tile: Tensor) -> Tensor:
    """What follows the first `after` elements of the workspace, in the shape of the tile."""
    return workspace[after : after + tile.numel()].view(tile.shape)


class RmsUpdate(DenseUpdate):
    """The same with `||left.T @ right - W||_F / sqrt(mn)` for the size, by `||W||^2 - 2 <W, W_batch> + ||W_batch||^2`.

    Only the middle term goes through W_batch, tile by tile; the others are a norm and a product of Gram matrices. The
    sums are float64's, the products of a tile its own precision's.
    """

    def change(self) -> Tensor:
        wide = accumulation_dtype(self.W.device)
        shared = self._sum_over_tiles()
        own = torch.linalg.vector_norm(self.W).to(wide).square()
        target = (gram(self.left) * gram(self.right)).sum()
        square: Tensor = own - 2.0 * shared + target
        return (square.clamp_min(0.0) / self.W.numel()).sqrt().to(self.W.dtype)

    def _widest(self, columns: int) -> int:
        return columns  # whole rows, which lie one after the other

    def _fill(self, workspace: Tensor | None, tile: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """`left @ right`: these rows of W_batch."""
        if workspace is None:
            return left @ right
        out = _room(workspace, self.at_once, tile)
        torch.mm(left, right, out=out)
        return out

    def _measure(self, filled: Tensor, tile: Tensor) -> list[Tensor]:
        """The inner product with W."""
        if self.workspace is None:
            return [torch.bmm(filled[:, None], tile[..., None]).sum(dtype=accumulation_dtype(tile.device))]  # by rows
        pairs = zip(*(torch.split(x.view(-1), self.at_once) for x in (filled, tile)), strict=True)
        return [torch.dot(batch, running).to(accumulation_dtype(tile.device)) for batch, running in pairs]

    def _move_kept(self, rows: Tensor, kept: Tensor, share: Tensor | float) -> None:
        rows.lerp_(kept, share)


class PrimalUpdate:
    """The same for a W_batch that is at hand as `target` [m, n] because it is smaller than f (the primal form)."""

    def __init__(self, W: Tensor, target: Tensor, rms: bool = False) -> None:
        self.W, self.target, self.rms = W, target, rms

    def change(self) -> Tensor:
        if self.rms:
            difference: Tensor = torch.linalg.vector_norm(self.W - self.target, dtype=accumulation_dtype(self.W.device))
            return (difference / math.sqrt(self.W.numel())).to(self.W.dtype)
        return (self.W - self.target).abs_().mean()

    def neutralise_if(self, skipped: Tensor) -> None:
        self.target = self.target.masked_fill(skipped, 0.0)

    def move(self, share: Tensor | float) -> None:
        self.W.lerp_(self.target, share)
