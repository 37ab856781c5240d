"""Statistics over the joined batch of all ranks of `torch.distributed`, with gradient, as SyncBatchNorm has them.

Every rank's backward pass must run, since each all-reduces the gradients that the others owe to its samples.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from .._codes import coded
from .._errors import RegBNShapeError
from .._user_code import warn_at_call

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Ranks:
    """The ranks that join their batches; `group` None is the default group."""

    group: ProcessGroup | None

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    def batch_sizes(self, own: int, present: int | Tensor, device: torch.device) -> tuple[list[int], int]:
        """The batch size of every rank, in order, and how many rows of all take part, `present` of them here.

        Raises where the joined batch is below 2.
        """
        rank, size = dist.get_rank(self.group), self.size
        sizes = torch.zeros(2 * size, dtype=torch.long, device=device)
        sizes[rank], sizes[size + rank] = own, present
        dist.all_reduce(sizes, group=self.group)
        found = cast("list[int]", sizes.tolist())
        if sum(found[:size]) < 2:
            raise RegBNShapeError(
                f"RegBN expects more than 1 sample over all ranks in training; found {found[:size]} on the {size} ranks"
            )
        return found[:size], sum(found[size:])

    def join_rows(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """[own, k] -> [sum(sizes), k], the ranks' rows in order: one all-gather, and one all-reduce backward."""
        return cast(Tensor, _JoinRows.apply(rows, sizes, self.group))  # type: ignore[no-untyped-call]

    def sum(self, x: Tensor) -> Tensor:
        """The sum of every rank's `x`: one all-reduce, and one backward."""
        return cast(Tensor, _Sum.apply(x, self.group))  # type: ignore[no-untyped-call]


def joined(sync: bool, group: ProcessGroup | None) -> Ranks | None:
    """The ranks to join with, or None where there is nothing to join; where they are not to join, they are told so."""
    if not sync:
        if not torch.compiler.is_compiling() and dist.is_available() and dist.is_initialized():
            _tell_apart(dist.get_world_size())
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    ranks = Ranks(group)
    return ranks if ranks.size > 1 else None


@functools.cache
def _tell_apart(size: int) -> None:
    """Once in a process."""
    if size > 1:
        text = (
            f"RegBN is trained on {size} ranks, and each fits its own part of the batch. To fit the joined batch call "
            "regbn_surgery.convert_sync_regbn(model) before wrapping it (a conversion to SyncBatchNorm after regbnify "
            "does so, too)."
        )
        warn_at_call(coded("RB409", text))


#: Functions that go through a model, replace each BatchNorm by one that is synchronised, and add every child anew:
#: torch's and Lightning's, and apex'.
_CONVERSIONS = ("convert_sync_batchnorm", "convert_syncbn_model")


def conversion_of(frame: FrameType) -> Ranks | None:
    """The ranks that a conversion of BatchNorm is for; None where the function that runs in `frame` is no conversion.

    A module is not told of it: that its children are added to it once more is all that it sees, and who does so.
    """
    if frame.f_code.co_name not in _CONVERSIONS:
        return None
    return Ranks(frame.f_locals.get("process_group"))


def synchronised(model: nn.Module) -> Ranks | None:
    """The ranks that the SyncBatchNorm layers of a model join; None where it has none, or they join different ones."""
    groups = [module.process_group for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    one = bool(groups) and all(group is groups[0] for group in groups)
    return Ranks(groups[0]) if one else None


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return cast(Tensor, _Sum.apply(grad, ctx.group)), None  # type: ignore[no-untyped-call]


class _JoinRows(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], group: ProcessGroup | None) -> Tensor:
        rank = dist.get_rank(group)
        ctx.group, ctx.start, ctx.stop = group, sum(sizes[:rank]), sum(sizes[: rank + 1])
        longest = max(sizes)
        padded = rows.new_zeros((longest, rows.shape[1]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        total = cast(Tensor, _Sum.apply(grad, ctx.group))  # type: ignore[no-untyped-call]
        return total[ctx.start : ctx.stop], None, None
