"""The running state of RegBN: the projection, the moments of its change, the counters; how a step moves them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._errors import RegBNWarning
from ._dense import DenseUpdate, PrimalUpdate
from ._linalg import values_at_hand
from ._low_rank import LowRankUpdate
from ._multiplier import Ridge
from ._norms import ChannelNorm, Moments
from .options import RegBNOptions

_log = logging.getLogger("regbn_surgery")
_NORMS = ("norm_f", "norm_g", "norm_f_out", "norm_g_out")
#: What the published layer does not save.
_OWN_STATE = ("change_mean", "change_square", "num_steps", "num_skipped")
DEFAULT_RANK = 64

Update = DenseUpdate | PrimalUpdate | LowRankUpdate
Number = TypeVar("Number", float, Tensor)


def in_backward() -> bool:
    """Whether a backward pass is running: a forward within it is the second one of gradient checkpointing."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class RunningState(nn.Module):
    """The part of RegBN that lasts. Everything that a resumed run needs is in the state dict.

    Buffers: `W` [m, n], or `W_left` [m, r] and `W_right` [r, n]; `change_mean`, `change_square`, the moments of the
    size of W's change; `num_steps`; `num_skipped`, the batches that were not finite; and outside the state dict
    `multiplier`, lambda of the last training step. Floating ones stay in float32 when the module is made half.
    """

    W: Tensor
    W_left: Tensor
    W_right: Tensor
    change_mean: Tensor
    change_square: Tensor
    num_steps: Tensor
    num_skipped: Tensor
    multiplier: Tensor

    def __init__(self, options: RegBNOptions, projection: str, m: int, n: int) -> None:
        super().__init__()
        self.options = options
        self.projection = projection
        if projection == "dense":
            self.register_buffer("W", torch.zeros(m, n))
        else:
            rank = min(options.rank or DEFAULT_RANK, m, n)
            self.register_buffer("W_left", torch.zeros(m, rank))
            self.register_buffer("W_right", torch.zeros(rank, n))
        self.register_buffer("change_mean", torch.zeros(()))
        self.register_buffer("change_square", torch.zeros(()))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("num_skipped", torch.zeros((), dtype=torch.long))
        self.register_buffer("multiplier", torch.zeros(()), persistent=False)
        self._warned = False
        self._before: tuple[Tensor, ...] | None = None

    # -- the projection ----------------------------------------------------------------------------------------

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """`(W,)`, or `(W_left, W_right)`; their product is the running projection."""
        return (self.W,) if self.projection == "dense" else (self.W_left, self.W_right)

    def subtract(self, f: Tensor, g: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """`f - g W` for `f` [b, n], `g` [b, m]."""
        *inner, last = (factor.to(f.dtype) for factor in factors)
        for factor in inner:
            g = g @ factor
        return torch.addmm(f, g, last, alpha=-1.0)

    def snapshot(self) -> tuple[Tensor, ...]:
        """The projection from before this step, kept for a second forward by gradient checkpointing."""
        if not in_backward() or self._before is None:
            self._before = tuple(factor.clone() for factor in self.factors)
        return self._before

    def update_towards(self, rows: Tensor, columns: Tensor) -> Update:
        """An update towards `rows.T @ columns`, for [b, m] and [b, n]."""
        factors = self.factors
        rows, columns = rows.detach().to(factors[0].dtype), columns.detach().to(factors[0].dtype)
        if len(factors) == 1:
            return DenseUpdate(factors[0], rows, columns)
        return LowRankUpdate(factors[0], factors[1], rows, columns)

    # -- a step ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def advance(
        self,
        update: Update,
        solution: Ridge,
        n_epoch: int | None,
        moments: Iterable[tuple[ChannelNorm, Moments]],
    ) -> None:
        """Move the state by one batch; a batch that is not finite is only counted. Nothing in a second forward."""
        if in_backward():
            return
        change = update.change()
        finite = torch.isfinite(change + solution.multiplier) & solution.finite
        on_host = values_at_hand(change)
        if on_host:
            # The host waits for this device anyway: branch, and reckon with plain numbers.
            if not finite:
                self.num_skipped.add_(1)
                self._warn_of_skipping()
                return
            self.num_steps.add_(1)
            exponent = int(self.num_steps) if n_epoch is None else n_epoch + 1
            state = (self.change_mean.item(), self.change_square.item())
            mean, square, share = adaptive_share(self.options, *state, change.item(), exponent)
            update.move(share)
            self.change_mean.fill_(mean)
            self.change_square.fill_(square)
            self.multiplier.copy_(solution.multiplier)
        else:
            self._advance_unseen(update, change, finite, solution.multiplier, n_epoch)
        for norm, seen in moments:
            norm.track(seen, finite)
        if on_host and self.options.verbose:
            _log.info("RegBN: lambda %.6g, change of W %.3g", self.multiplier.item(), change.item())

    def _advance_unseen(
        self, update: Update, change: Tensor, finite: Tensor, multiplier: Tensor, n_epoch: int | None
    ) -> None:
        """The same where no value may be read back to the host (another device, a compiler)."""
        self.num_steps.add_(finite)
        self.num_skipped.add_(~finite)
        exponent = self.num_steps.clamp_min(1) if n_epoch is None else n_epoch + 1
        change = torch.where(finite, change, 0.0)
        state = (self.change_mean, self.change_square)
        mean, square, share = adaptive_share(self.options, *state, change, exponent)
        update.neutralise_unless(finite)
        update.move(torch.where(finite, share, 0.0))
        self.change_mean.copy_(torch.where(finite, mean, self.change_mean))
        self.change_square.copy_(torch.where(finite, square, self.change_square))
        self.multiplier.copy_(torch.where(finite, multiplier, self.multiplier))

    def _warn_of_skipping(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "RegBN was given a batch that is not finite; its running state was left as it was. Later ones are "
                "counted in `num_skipped` without a warning",
                RegBNWarning,
                stacklevel=2,
            )

    def train(self, mode: bool = True) -> RunningState:
        """As `nn.Module.train`; also tells of skipped batches on devices where a step may not ask for their number."""
        if not self._warned and self.num_skipped.device.type not in ("cpu", "meta") and self.num_skipped > 0:
            self._warn_of_skipping()
        return super().train(mode)

    # -- what torch does to modules ----------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RunningState:
        """Keep the state in float32 where the module is made half: a share of 0.02 of W would be lost in it."""
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            after = self._buffers[name]
            if after is not None and after.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = buffer.to(after.device)
        self._before = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_before": None}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *rest: Any
    ) -> None:
        """Take the published layer's state dict too: it has no moments and may hold norms that are off here."""
        missing = [name for name in _OWN_STATE if prefix + name not in state_dict]
        if len(missing) == len(_OWN_STATE) and prefix + "W" in state_dict:
            for name in missing:
                state_dict[prefix + name] = torch.zeros_like(getattr(self, name))
            for name in _NORMS:
                if isinstance(getattr(self, name), nn.Identity):
                    for key in [key for key in state_dict if key.startswith(f"{prefix}{name}.")]:
                        del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *rest)


def adaptive_share(
    options: RegBNOptions, mean: Number, square: Number, change: Number, exponent: int | Tensor
) -> tuple[Number, Number, Number]:
    """The two moments of the change's size with `change` taken in, and the share of the batch's projection.

    `share = momentum * (mean / (1 - beta1^t)) / (sqrt(square / (1 - beta2^t)) + 1e-8)`, t the exponent.
    """
    mean = options.beta1 * mean + (1.0 - options.beta1) * change
    square = options.beta2 * square + (1.0 - options.beta2) * change * change
    corrected: Any = (square / (1.0 - options.beta2**exponent)) ** 0.5
    share = options.momentum * (mean / (1.0 - options.beta1**exponent)) / (corrected + 1e-8)
    return mean, square, share
