"""The running projection kept as factors `left @ right`, for features whose whole W would not fit.

A step adds the batch's projection, of rank b, and cuts the sum back to the rank kept. The cut is the best one in the
Frobenius norm (Eckart and Young), found from the (r + b) x (r + b) Gram matrices of the factors; where the sum has
no higher rank nothing is lost. The size of a change is `||W - W_batch||_F / sqrt(mn)`, from the same matrices; it
stands for the mean absolute change, which would need W whole, and enters the share only as a ratio.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._linalg import cross_gram, gram


class LowRankUpdate:
    """One step of `W <- (1 - share) W + share rows.T @ columns` with `W = left @ right` held as factors.

    `left` [m, r] and `right` [r, n] are changed in place by `move`; `rows` is [b, m], `columns` [b, n].
    """

    def __init__(self, left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> None:
        self.left, self.right, self.rows, self.columns = left, right, rows, columns

    def change(self) -> Tensor:
        """`||left @ right - rows.T @ columns||_F / sqrt(mn)`, 0-dimensional."""
        self.gram_left = _stacked_gram(self.left.mT, self.rows)
        self.gram_right = _stacked_gram(self.right, self.columns)
        signs = self._weights(1.0, -1.0)
        square = (self.gram_left * signs[:, None] * signs * self.gram_right).sum()
        return square.clamp_min(0.0).sqrt() / math.sqrt(self.left.shape[0] * self.right.shape[1])

    def neutralise_if(self, skipped: Tensor) -> None:
        """Before a `move` by 0, after `change`: keep what is not finite from reaching the factors."""
        self.rows, self.columns = self.rows.masked_fill(skipped, 0.0), self.columns.masked_fill(skipped, 0.0)
        self.gram_left = torch.where(torch.isfinite(self.gram_left), self.gram_left, 0.0)
        self.gram_right = torch.where(torch.isfinite(self.gram_right), self.gram_right, 0.0)

    def move(self, share: Tensor | float) -> None:
        """Move W by `share` and cut it back to its rank."""
        rank = self.left.shape[1]
        weights = self._weights(1.0 - share, share)
        values, vectors = torch.linalg.eigh(weights[:, None] * self.gram_left * weights)
        level = values[-1] * len(values) * torch.finfo(values.dtype).eps
        root = torch.where(values > level, values, 0.0).sqrt()
        half = vectors * root  # times vectors.T it is the square root of the Gram matrix
        inverse_half = vectors * torch.where(root > 0, 1.0 / root, 0.0)
        # The left singular vectors of the sum, in the basis of `half`
        _, rotation = torch.linalg.eigh(half.mT @ self.gram_right @ half)
        rotation = rotation[:, -rank:]
        to_left = (weights[:, None] * (inverse_half @ rotation)).to(self.left.dtype)
        to_right = (rotation.mT @ half.mT).to(self.right.dtype)
        left = torch.addmm(self.rows.mT @ to_left[rank:], self.left, to_left[:rank])
        right = torch.addmm(to_right[:, rank:] @ self.columns, to_right[:, :rank], self.right)
        self.left.copy_(left)
        self.right.copy_(right)

    def _weights(self, old: Tensor | float, new: Tensor | float) -> Tensor:
        """`old` for each kept column, `new` for each row of the batch."""
        weights = self.gram_left.new_ones(len(self.gram_left))
        rank = self.left.shape[1]
        weights[:rank] *= old
        weights[rank:] *= new
        return weights


def _stacked_gram(a: Tensor, b: Tensor) -> Tensor:
    """The Gram matrix of the rows of `a` and then of `b`."""
    corner = cross_gram(a, b)
    return torch.cat([torch.cat([gram(a), corner], 1), torch.cat([corner.mT, gram(b)], 1)], 0)
