"""The running state of RegBN: the projection, the moments of its change, the counters; how a step moves them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._codes import coded
from .._user_code import warn_at_call
from ._compilers import exporting
from ._dense import DenseUpdate, PrimalUpdate, RmsUpdate
from ._linalg import as_dtype, values_at_hand
from ._loading import leave_out, of_another_place
from ._low_rank import LowRankUpdate
from ._multiplier import Ridge
from ._no_gradient import without_gradient
from ._norms import ChannelNorm, Moments
from ._presence import Rows, keep_rows
from ._readers import Readers, is_read_by_autograd, may_hook
from ._share import adaptive_share, corrected_share, exponent_of
from .options import RegBNOptions

_log = logging.getLogger("regbn_surgery")
_NORMS = ("norm_f", "norm_g", "norm_f_out", "norm_g_out")
#: What the published layer does not save.
_OWN_STATE = ("change_mean", "change_square", "num_steps", "num_skipped")
#: What options add to the state dict.
_OPTIONAL_STATE = ("mean_g", "zero_weight")
DEFAULT_RANK = 64
FAR_TOO_MUCH = 10.0  # times the size of f: what a ridge fit of f on g subtracts is no larger than f
SUSPICIOUS = 1000.0  # times the projection of a batch: such a running one is looked at more closely
MEAN_MOMENTUM = 0.1  # of the running mean of g, as BatchNorm's; the first steps are averaged

Update = DenseUpdate | PrimalUpdate | LowRankUpdate


def in_backward() -> bool:
    """Whether a backward pass is running: a forward within it is the second one of gradient checkpointing."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class Projection(NamedTuple):
    """The running projection at some time: its factors, whose product it is, and the mean of g that belongs to it."""

    factors: tuple[Tensor, ...]
    mean_g: Tensor | None


@dataclass(frozen=True)
class Step:
    """What a batch has to say to the running state.

    `rows`: those that took part. `g_mean` [m]: their mean of g, where that is taken off. `batch_norm`: ||W_batch||_F,
    and `removed`: ||f - f'|| / ||f|| before the output norms, for who watches. `f` [b, n] and `g` [b, m] are what the
    residual was formed from.
    """

    update: Update
    solution: Ridge
    rows: Rows
    n_epoch: int | None
    moments: tuple[tuple[ChannelNorm, Moments], ...]
    g_mean: Tensor | None
    batch_norm: Tensor
    removed: Tensor
    f: Tensor
    g: Tensor


class RunningState(nn.Module):
    """The part of RegBN that lasts. Everything that a resumed run needs is in the state dict.

    Buffers: `W` [m, n], or `W_left` [m, r] and `W_right` [r, n]; `change_mean`, `change_square`, the moments of the
    size of W's change; `num_steps`; `num_skipped`, the batches that moved nothing: not finite, or with fewer than two
    rows in which both sides are there. With `centre` the running mean of g, `mean_g` [m]; with `correct_start`
    `zero_weight`, the share of its start that an uncorrected W would still have. Outside the state dict `multiplier`,
    lambda of the last training step, and `observed`, see `statistics`. Floating ones stay in float32 when the module
    is made half.
    """

    W: Tensor
    W_left: Tensor
    W_right: Tensor
    change_mean: Tensor
    change_square: Tensor
    num_steps: Tensor
    num_skipped: Tensor
    mean_g: Tensor
    zero_weight: Tensor
    multiplier: Tensor
    observed: Tensor
    #: Batches of which W is the plain average so far, while `update_regbn` forms it (a number of `change_mean`'s kind).
    averaged: Tensor | None = None
    #: The path of its site in a rewritten model, by which warnings name it.
    site_path: str = ""

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
        if options.centre:
            self.register_buffer("mean_g", torch.zeros(m))
        if options.correct_start:
            self.register_buffer("zero_weight", torch.ones(()))
        self.register_buffer("multiplier", torch.zeros(()), persistent=False)
        self.register_buffer("observed", torch.full((3,), -1.0), persistent=False)
        self._warned = self._warned_of_size = False
        self._before: Projection | None = None
        self._readers = Readers()

    # -- the projection ----------------------------------------------------------------------------------------

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """`(W,)`, or `(W_left, W_right)`; their product is the running projection."""
        return (self.W,) if self.projection == "dense" else (self.W_left, self.W_right)

    @property
    def running(self) -> Projection:
        """The running projection as it is now: the buffers themselves."""
        return Projection(self.factors, self.mean_g if self.options.centre else None)

    def subtract(self, f: Tensor, g: Tensor, by: Projection, present: Tensor | None = None) -> Tensor:
        """`f - (g - mean) W` for `f` [b, n], `g` [b, m]; f where `present` [b] is false."""
        if by.mean_g is not None:
            g = g - by.mean_g.to(g.dtype)
        g = keep_rows(g, present)
        factors = by.factors
        if not (is_read_by_autograd(g) and self._is_live(factors)):
            return _residual(f, g, factors)
        if may_hook(factors[0]):
            with self._readers.reading(factors):
                return _residual(f, g, factors)
        return _residual(f, g, factors if exporting() else tuple(factor.clone() for factor in factors))

    def _is_live(self, factors: tuple[Tensor, ...]) -> bool:
        """Whether these are the buffers, which a step changes in place, and not a copy of them."""
        return all(ours is theirs for ours, theirs in zip(self.factors, factors, strict=True))

    def snapshot(self) -> Projection:
        """The projection from before this step, kept for a second forward by gradient checkpointing."""
        if not in_backward() or self._before is None:
            now = self.running
            mean = None if now.mean_g is None else now.mean_g.clone()
            self._before = Projection(tuple(factor.clone() for factor in now.factors), mean)
        return self._before

    def update_towards(self, rows: Tensor, columns: Tensor) -> Update:
        """An update towards `rows.T @ columns`, for [b, m] and [b, n]."""
        factors = self.factors
        rows, columns = rows.detach().to(factors[0].dtype), columns.detach().to(factors[0].dtype)
        if len(factors) == 1:
            update = RmsUpdate if self.options.step_size == "rms" else DenseUpdate
            return update(factors[0], rows, columns)
        return LowRankUpdate(factors[0], factors[1], rows, columns)

    # -- a step ------------------------------------------------------------------------------------------------

    @without_gradient
    def advance(self, step: Step) -> None:
        """Move the state by one batch; one that is not finite, or has no rows, is only counted.

        Nothing in a second forward (gradient checkpointing).
        """
        if in_backward():
            return
        self._readers.before_writing()
        change = step.update.change()
        finite = (change + step.solution.multiplier < math.inf) & step.solution.finite  # both are 0 or more, or NaN
        if self.averaged is not None:
            self._take_into(self.averaged, step, finite & step.rows.enough)
            return
        on_host = values_at_hand(change) and not isinstance(step.rows.count, Tensor)
        if on_host:
            # The host waits for this device anyway: branch, and reckon with plain numbers.
            if not (finite and step.rows.enough):
                self.num_skipped.add_(1)
                if not finite:
                    self._warn_of_skipping()
                return
            self._advance_seen(step, change.item())
        else:
            finite = finite & step.rows.enough
            self._advance_unseen(step, change, finite)
        for norm, seen in step.moments:
            norm.track(seen, finite)
        if on_host and self.options.verbose:
            _log.info("RegBN: lambda %.6g, change of W %.3g", self.multiplier.item(), change.item())

    def _advance_seen(self, step: Step, change: float) -> None:
        self.num_steps.add_(1)
        count = int(self.num_steps)
        exponent = exponent_of(self.options, step.n_epoch, count)
        state = (self.change_mean.item(), self.change_square.item())
        limit = torch.finfo(self.change_square.dtype).max
        mean, square, share = adaptive_share(self.options, *state, change, exponent, limit)
        if self.options.correct_start:
            left, share = corrected_share(self.zero_weight.item(), share)
            self.zero_weight.fill_(left)
        step.update.move(share)
        self.change_mean.fill_(mean)
        self.change_square.fill_(square)
        if step.g_mean is not None:
            self.mean_g.lerp_(step.g_mean.to(self.mean_g.dtype), max(MEAN_MOMENTUM, 1.0 / count))
        self.multiplier.copy_(step.solution.multiplier)
        self.observed[0], self.observed[1], self.observed[2] = share, step.batch_norm, step.removed
        if not self._warned_of_size:
            self._look_at_sizes(step, change)

    def _advance_unseen(self, step: Step, change: Tensor, moves: Tensor | bool) -> None:
        """The same where no value may be read back to the host (another device, a compiler)."""
        moves = torch.as_tensor(moves, device=change.device)
        skips = ~moves
        self.num_steps.add_(moves)
        self.num_skipped.add_(skips)
        exponent = exponent_of(self.options, step.n_epoch, self.num_steps)
        share = self._unseen_share(change.masked_fill(skips, 0.0), moves, exponent)
        if self.options.correct_start:
            left, share = corrected_share(self.zero_weight, share)
            self.zero_weight.copy_(torch.where(moves, left, self.zero_weight))
        share = share.masked_fill(skips, 0.0)
        step.update.neutralise_if(skips)
        step.update.move(share)
        if step.g_mean is not None:
            towards = step.g_mean.to(self.mean_g.dtype) - self.mean_g
            count = self.num_steps.clamp_min(1)
            self.mean_g.add_((towards * (1.0 / count).clamp_min(MEAN_MOMENTUM)).masked_fill(skips, 0.0))
        self.multiplier.copy_(torch.where(moves, step.solution.multiplier, self.multiplier))
        seen = torch.stack((share, step.batch_norm, step.removed))
        self.observed.copy_(torch.where(moves, seen, self.observed))

    def _take_into(self, averaged: Tensor, step: Step, moves: Tensor) -> None:
        """Move W, the mean of g and the moments of the input norms by 1 / number of batches, where the step `moves`."""
        skips = ~moves
        averaged.add_(moves)
        share = averaged.clamp_min(1.0).reciprocal().masked_fill(skips, 0.0)
        step.update.neutralise_if(skips)
        step.update.move(share)
        if step.g_mean is not None:
            towards = step.g_mean.to(self.mean_g.dtype) - self.mean_g
            self.mean_g.add_((towards * share).masked_fill(skips, 0.0))
        for norm, seen in step.moments:
            norm.track(seen, moves, share)

    def _unseen_share(self, change: Tensor, moves: Tensor, exponent: int | Tensor) -> Tensor:
        """`adaptive_share` in as few operations as may be, the moments moved in place where the step `moves`."""
        options, mean, square = self.options, self.change_mean, self.change_square
        limit = torch.finfo(square.dtype).max
        change = as_dtype(change, mean.dtype)
        own = change.square().clamp_max(limit)
        mean.lerp_(change, (moves * (1.0 - options.beta1)).to(mean.dtype))
        square.lerp_(own, (moves * (1.0 - options.beta2)).to(square.dtype))
        corrected = (square / (1.0 - options.beta2**exponent)).sqrt() + 1e-8
        share = mean / (1.0 - options.beta1**exponent) / corrected
        return share.masked_fill(own >= limit, 1.0) * options.momentum

    def _warn_of_skipping(self) -> None:
        if not self._warned:
            self._warned = True
            text = (
                f"{self._named()} was given a batch that is not finite; its running state was left as it was. Later "
                "ones are counted in `num_skipped` without a warning"
            )
            warn_at_call(coded("RB410", text))

    def _look_at_sizes(self, step: Step, change: float) -> None:
        """Say once that W is far too large: from batches in which g hardly varied, or was far smaller than now.

        A running projection far larger than the batch's is no sign by itself: `gcv` finds nothing in some batches.
        """
        removed, batch_norm = step.removed.item(), step.batch_norm.item()
        usual = batch_norm / math.sqrt(len(self.factors[0]) * self.factors[-1].shape[1])
        if removed > FAR_TOO_MUCH:
            found = f"subtracted {removed:.3g} times the size of f"
        elif SUSPICIOUS * usual < change and (would := self._running_share(step)) > FAR_TOO_MUCH:
            found = f"would subtract {would:.3g} times the size of f in evaluation, by its running projection"
        else:
            return
        self._warned_of_size = True
        text = (
            f"{self._named()} {found}: g hardly varied when W was fitted, or has grown since. Look at g, or set "
            "`normalize_input: true` or `constraint: fixed` with `lam`; if g is as it should be now, `update_regbn` "
            "forms the running projection again. Later steps like this give no warning"
        )
        warn_at_call(coded("RB413", text))

    def _running_share(self, step: Step) -> float:
        """The size of what the running projection takes off this batch, over that of f."""
        f, g = step.f.detach(), step.g.detach()
        size = torch.linalg.vector_norm(f, dtype=torch.float64)
        taken = torch.linalg.vector_norm(f - _residual(f, g, self.factors), dtype=torch.float64)
        return float(taken / size) if size > 0 else 0.0

    def _named(self) -> str:
        sizes = f"RegBN ({len(self.factors[0])} features of g, {self.factors[-1].shape[1]} of f)"
        return f"RegBN `{self.site_path}`" if self.site_path else sizes

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
        return {**self.__dict__, "_before": None, "_readers": Readers(), "averaged": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take pickles of older versions too, which lack what is not part of the state dict."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.__dict__.setdefault("_readers", Readers())
        self.__dict__.setdefault("_warned_of_size", False)
        if "observed" not in self._buffers:
            self.register_buffer("observed", self.change_mean.new_full((3,), -1.0), persistent=False)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *rest: Any
    ) -> None:
        """Take the published layer's state dict too: it has no moments and may hold norms that are off here."""
        self._readers.before_writing()
        norms = {f"{prefix}{name}.": getattr(self, name) for name in _NORMS}
        rest[-1].extend(of_another_place(state_dict, norms))
        missing = [name for name in _OWN_STATE if prefix + name not in state_dict]
        if len(missing) == len(_OWN_STATE) and prefix + "W" in state_dict:
            for name in (*missing, *(name for name in _OPTIONAL_STATE if name in self._buffers)):
                state_dict[prefix + name] = torch.zeros_like(getattr(self, name))  # its W has left its start behind
            for start, norm in norms.items():
                rest[-1].extend(leave_out(state_dict, start, norm))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *rest)


def _residual(f: Tensor, g: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    for factor in factors[:-1]:
        g = g @ as_dtype(factor, f.dtype)
    return torch.addmm(f, g, as_dtype(factors[-1], f.dtype), alpha=-1.0)
