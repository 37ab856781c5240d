"""Which rows of a batch take part in a fit: those in which both sides are there.

A row of f or g that holds nothing but zeros stands for a modality that is missing; a caller may also say so by a mask.
Such rows are zeroed on both sides, so that they add nothing to any product, and are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._linalg import values_at_hand
from ._ranks import Ranks

ENOUGH = 2  # rows: with one of them any f is explained by any g


@dataclass(frozen=True)
class Rows:
    """The rows that take part. `present` [b] bool is None where the host knows that all of them do; `absent` is not it.

    `count` is their number, over all ranks where these are joined (`sizes`: the batch of each); a 0-dimensional
    tensor where the host must not ask for it. With fewer than two there is not `enough` to fit: `present` is then false
    everywhere.
    """

    present: Tensor | None
    absent: Tensor | None
    count: int | Tensor
    enough: bool | Tensor
    sizes: list[int] | None = None

    @classmethod
    def those(cls, present: Tensor | None, count: int | Tensor, sizes: list[int] | None = None) -> Rows:
        """The rows that are `present`, unless they are too few."""
        enough = count >= ENOUGH
        if present is not None:
            present = present & enough
        return cls(present, None if present is None else ~present, count, enough, sizes)

    def of(self, x: Tensor) -> Tensor:
        """`x` [b, ...] with zeros in the rows that do not take part, whatever stood there."""
        return x if self.absent is None else x.masked_fill(_beside(self.absent, x), 0.0)


def keep_rows(x: Tensor, present: Tensor | None) -> Tensor:
    """`x` [b, ...] with zeros where `present` is false, whatever stood there (no NaN passes, in either direction)."""
    return x if present is None else torch.where(_beside(present, x), x, 0.0)


def _beside(rows: Tensor, x: Tensor) -> Tensor:
    """[b] -> [b, 1, ...], to go with `x` [b, ...]."""
    return rows.view(-1, *[1] * (x.dim() - 1))


def present_rows(sides: tuple[Tensor, ...], given: Tensor | None) -> Tensor | None:
    """[b] bool: in which rows none of the sides [b, ...] is all zero and `given` [b] is true; None for all of them."""
    looked_at = sides if given is None else (*sides, given)
    if all(map(values_at_hand, looked_at)):
        whole = given is None or bool(given.all())
        if whole and all(map(_rows_nonzero, sides)):
            return None
    found = given
    for x in sides:
        nonzero = x.detach().flatten(1).any(1)  # true for what is not finite, too
        found = nonzero if found is None else found & nonzero
    return found


def _rows_nonzero(x: Tensor) -> bool:
    """Whether each row of a tensor on the host holds something. By numpy, which starts in a fraction of the time."""
    values = x.detach().flatten(1).numpy()
    # A row may only be all zero where it begins with a zero: most batches are through with that.
    return bool(values[:, :1].all()) or bool(values.any(1).all())


def taking_part(f: Tensor, g: Tensor, given: Tensor | None, ranks: Ranks | None) -> Rows:
    """The rows of f [b, ...] and g [b, ...] that a training step is fitted on."""
    present = present_rows((f, g), given)
    if ranks is not None:
        own = len(f) if present is None else present.sum()
        sizes, count = ranks.batch_sizes(len(f), own, f.device)
        if present is None and count < ENOUGH:
            present = torch.zeros(len(f), dtype=torch.bool, device=f.device)
        return Rows.those(present, count, sizes)
    if present is None:
        return Rows.those(None, len(f))
    total = present.sum()
    return Rows.those(present, int(total) if values_at_hand(total) else total)
