"""The RegBN module: normalises the features f with respect to the features g."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from .._errors import RegBNOptionError, RegBNShapeError, RegBNWarning
from . import functional
from ._dense import DenseUpdate, PrimalUpdate
from ._multiplier import Ridge
from ._norms import ChannelNorm, input_norm, output_norm
from .options import Constraint, Fit, Form, LambdaGrad, Projection, Reduce, RegBNOptions, Replace, Residual

_log = logging.getLogger("regbn_surgery")
Update = DenseUpdate | PrimalUpdate
_NORMS = ("norm_f", "norm_g", "norm_f_out", "norm_g_out")
_STATE = ("change_mean", "change_square", "num_steps", "num_skipped")  # what the published layer does not save


@dataclass(frozen=True)
class _Batch:
    """One batch in the working precision. `*_raw` [b, .] are the features as they came, `*_fit` as they are fitted."""

    f: Tensor
    g: Tensor
    f_raw: Tensor
    g_raw: Tensor
    f_fit: Tensor
    g_fit: Tensor
    statistics: tuple[tuple[ChannelNorm, Tensor, Tensor, int], ...] = ()


class RegBN(nn.Module):
    """Subtracts from f what is linearly explained by g: `f' = norm(f - g W)`, `g' = norm(g)`.

    W solves a ridge problem on each training batch, with the multiplier lambda set by a constraint; a running W,
    moved towards each batch's by an adaptive share, is used in evaluation (RegBN, NeurIPS 2023).

    Shapes, with `reduce="flatten"`: f `[B, C_f, *f_layer_dim]`, g `[B, C_g, *g_layer_dim]`, any number of spatial
    axes on either side; W is `[m, n]`, m and n the flat sizes of g and f. With `reduce="mean"`: f `[B, C_f, *any]`,
    g `[B, C_g, *any]`, empty layer dims, W `[C_g, C_f]`. Outputs have the shapes and dtypes of the inputs.

    The sizes come first; `gpu` is accepted for the published signature and ignored (use `.to(device)`). Every other
    argument is described in `RegBNOptions`.

    Raises `RegBNOptionError` for options that contradict each other, `RegBNShapeError` (a `ValueError`) for sizes
    and inputs that do not fit, among them a batch of 1 in training, as BatchNorm does.

    >>> regbn = RegBN(512, 64, [], [7, 7], normalize_input=True)
    >>> f, g = regbn(torch.randn(50, 512), torch.randn(50, 64, 7, 7))
    """

    W: Tensor
    change_mean: Tensor
    change_square: Tensor
    num_steps: Tensor
    num_skipped: Tensor
    multiplier: Tensor

    def __init__(
        self,
        f_num_channels: int,
        g_num_channels: int,
        f_layer_dim: Sequence[int] = (),
        g_layer_dim: Sequence[int] = (),
        *,
        gpu: object = None,
        beta1: float = 0.9,
        beta2: float = 0.99,
        momentum: float = 0.02,
        normalize_input: bool = False,
        normalize_output: bool = True,
        affine: bool = False,
        sigma_THR: float = 0.0,
        sigma_MIN: float = 0.0,
        verbose: bool = False,
        constraint: Constraint = "smoother",
        reduce: Reduce = "flatten",
        fit: Fit = "batch",
        replace: Replace = "both",
        residual: Residual = "raw",
        lambda_grad: LambdaGrad = "constant",
        projection: Projection = "dense",
        rank: int | None = None,
        form: Form = "auto",
        max_dense_gib: float = 1.0,
        sync: bool = False,
    ) -> None:
        super().__init__()
        self.options = RegBNOptions(
            beta1=beta1,
            beta2=beta2,
            momentum=momentum,
            normalize_input=normalize_input,
            normalize_output=normalize_output,
            affine=affine,
            sigma_THR=sigma_THR,
            sigma_MIN=sigma_MIN,
            verbose=verbose,
            constraint=constraint,
            reduce=reduce,
            fit=fit,
            replace=replace,
            residual=residual,
            lambda_grad=lambda_grad,
            projection=projection,
            rank=rank,
            form=form,
            max_dense_gib=max_dense_gib,
            sync=sync,
        )
        self.f_num_channels = _positive("f_num_channels", f_num_channels)
        self.g_num_channels = _positive("g_num_channels", g_num_channels)
        self.f_layer_dim = tuple(_positive("f_layer_dim", size) for size in f_layer_dim)
        self.g_layer_dim = tuple(_positive("g_layer_dim", size) for size in g_layer_dim)
        if reduce == "mean" and (self.f_layer_dim or self.g_layer_dim):
            raise RegBNOptionError(
                f"reduce='mean' fits on the means over positions and takes any number of them; found f_layer_dim="
                f"{list(self.f_layer_dim)} and g_layer_dim={list(self.g_layer_dim)}: leave both empty"
            )
        self._make_norms()
        self.register_buffer("W", torch.zeros(self.projection_shape))
        self.register_buffer("change_mean", torch.zeros(()))
        self.register_buffer("change_square", torch.zeros(()))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("num_skipped", torch.zeros((), dtype=torch.long))
        self.register_buffer("multiplier", torch.zeros(()), persistent=False)  # lambda of the last training step
        self._warned = False

    @property
    def projection_shape(self) -> tuple[int, int]:
        """(m, n): flat size of g by flat size of f."""
        return (
            self.g_num_channels * _product(self.g_layer_dim),
            self.f_num_channels * _product(self.f_layer_dim),
        )

    def _make_norms(self) -> None:
        options = self.options
        by_position = options.reduce == "mean"
        f, g = (self.f_num_channels, self.f_layer_dim), (self.g_num_channels, self.g_layer_dim)
        identity = nn.Identity
        self.norm_f = input_norm(*f, options.affine) if options.normalize_input else identity()
        self.norm_g = input_norm(*g, options.affine) if options.normalize_input else identity()
        out = options.normalize_output
        self.norm_f_out = output_norm(*f, options.affine, by_position) if out else identity()
        both = out and options.replace == "both"
        self.norm_g_out = output_norm(*g, options.affine, by_position) if both else identity()

    def forward(
        self,
        f: Tensor,
        g: Tensor,
        is_training: bool | None = None,
        n_epoch: int | None = None,
        steps_per_epoch: int | None = None,
        *,
        f_mask: Tensor | None = None,
        g_mask: Tensor | None = None,
        multiplier: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`(f', g')` in the shapes and dtypes of f and g.

        `is_training` None means the module's own mode. `n_epoch` (from 0) reproduces the published bias correction
        `1 - beta^(n_epoch + 1)`; without it steps are counted. `steps_per_epoch` is accepted and not needed.
        Masks, `[B, *positions]`, True where a position counts, are for `reduce="mean"`: they decide the means.
        `multiplier` (0-dimensional) replaces the lambda that solves the constraint.
        """
        training = self.training if is_training is None else is_training
        self._check(f, g, f_mask, g_mask, training)
        if torch.is_autocast_enabled(f.device.type):
            with torch.autocast(f.device.type, enabled=False):
                return self._apply_to(f, g, f_mask, g_mask, training, n_epoch, multiplier)
        return self._apply_to(f, g, f_mask, g_mask, training, n_epoch, multiplier)

    def _apply_to(
        self,
        f: Tensor,
        g: Tensor,
        f_mask: Tensor | None,
        g_mask: Tensor | None,
        training: bool,
        n_epoch: int | None,
        multiplier: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        work = torch.promote_types(torch.promote_types(f.dtype, g.dtype), self.W.dtype)
        batch = self._prepare(f.to(work), g.to(work), f_mask, g_mask, training)
        residual = self._fit(batch, n_epoch, multiplier) if training else self._subtract(batch, self.W)
        f_out = self.norm_f_out(self._restore(residual, batch))
        g_out = self.norm_g_out(batch.g) if self.options.replace == "both" else g
        return f_out.to(f.dtype), g_out.to(g.dtype)

    # -- the features ------------------------------------------------------------------------------------------

    def _prepare(self, f: Tensor, g: Tensor, f_mask: Tensor | None, g_mask: Tensor | None, training: bool) -> _Batch:
        if self.options.reduce == "mean":
            f_raw, g_raw = _mean_over_positions(f, f_mask), _mean_over_positions(g, g_mask)
        else:
            f_raw, g_raw = f, g
        needed = training or self.options.residual == "normalized"
        if not (self.options.normalize_input and needed):
            f_flat, g_flat = f_raw.flatten(1), g_raw.flatten(1)
            return _Batch(f, g, f_flat, g_flat, f_flat, g_flat)
        statistics: list[tuple[ChannelNorm, Tensor, Tensor, int]] = []
        f_fit = self._normalize(self.norm_f, f_raw, training, statistics)
        g_fit = self._normalize(self.norm_g, g_raw, training, statistics)
        if self.options.residual == "normalized":
            f_raw, g_raw = f_fit, g_fit
        same = g_raw is g_fit
        g_flat = g_fit.flatten(1)
        return _Batch(
            f,
            g,
            f_raw.flatten(1),
            g_flat if same else g_raw.flatten(1),
            f_fit.flatten(1),
            g_flat,
            tuple(statistics),
        )

    @staticmethod
    def _normalize(
        norm: nn.Module, x: Tensor, training: bool, statistics: list[tuple[ChannelNorm, Tensor, Tensor, int]]
    ) -> Tensor:
        if not isinstance(norm, ChannelNorm):
            return cast(Tensor, norm(x))
        y, mean, var = norm.normalize(x, training)
        if training:
            statistics.append((norm, mean.detach(), var.detach(), x.numel() // x.shape[1]))
        return y

    def _restore(self, residual: Tensor, batch: _Batch) -> Tensor:
        """The residual in the shape of f; with `reduce="mean"` what was subtracted goes to every position."""
        if self.options.reduce == "flatten":
            return residual.view(batch.f.shape)
        explained = batch.f_raw - residual
        return batch.f - explained.reshape(explained.shape + (1,) * (batch.f.dim() - 2))

    # -- the fit -----------------------------------------------------------------------------------------------

    @property
    def problem(self) -> functional.Problem:
        """The part of the options that decides the fit."""
        options = self.options
        return functional.Problem(options.constraint, options.lambda_grad, options.sigma_THR, options.sigma_MIN)

    def _fit(self, batch: _Batch, n_epoch: int | None, multiplier: Tensor | None) -> Tensor:
        G, F = batch.g_fit, batch.f_fit
        before = self.W.clone() if self.options.fit == "running" else None
        if self._takes_primal(G.shape[0]):
            right, solution = functional.primal(G, F, self.problem, multiplier)
            update: Update = PrimalUpdate(self.W, right.detach().to(self.W.dtype))
            residual = batch.f_raw - batch.g_raw @ right
        else:
            inverse, K, solution = functional.dual(G, F, self.problem, multiplier)
            residual = functional.subtract_dual(batch.f_raw, batch.g_raw, G, F, inverse, K)
            right = solution.spanned.to(F.dtype) @ F.detach()
            update = DenseUpdate(self.W, G.detach().to(self.W.dtype), right.to(self.W.dtype))
        self._advance(update, solution, n_epoch, batch)
        return residual if before is None else self._subtract(batch, before)

    def _takes_primal(self, batch_size: int) -> bool:
        form = self.options.form
        return form == "primal" or (form == "auto" and self.projection_shape[0] < batch_size)

    @staticmethod
    def _subtract(batch: _Batch, W: Tensor) -> Tensor:
        return torch.addmm(batch.f_raw, batch.g_raw, W.to(batch.f_raw.dtype), alpha=-1.0)

    # -- the running state -------------------------------------------------------------------------------------

    @torch.no_grad()
    def _advance(self, update: Update, solution: Ridge, n_epoch: int | None, batch: _Batch) -> None:
        """Move W towards the batch's projection and count the step; a batch that is not finite is only counted."""
        change = update.change()
        finite = torch.isfinite(change + solution.multiplier) & solution.finite
        on_host = change.device.type == "cpu" and not torch.compiler.is_compiling()
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
        for norm, mean_seen, var_seen, count in batch.statistics:
            norm.track(mean_seen, var_seen, count, finite)
        if on_host and self.options.verbose:
            _log.info("RegBN: lambda %.6g, mean change of W %.3g", self.multiplier.item(), change.item())

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

    # -- checks and state --------------------------------------------------------------------------------------

    def _check(self, f: Tensor, g: Tensor, f_mask: Tensor | None, g_mask: Tensor | None, training: bool) -> None:
        self._check_one("f", f, self.f_num_channels, self.f_layer_dim, f_mask)
        self._check_one("g", g, self.g_num_channels, self.g_layer_dim, g_mask)
        if f.shape[0] != g.shape[0]:
            raise RegBNShapeError(
                f"RegBN expects f and g of the same batch; found {f.shape[0]} samples of f and {g.shape[0]} of g"
            )
        if f.shape[0] == 0:
            raise RegBNShapeError("RegBN expects at least 1 sample (2 in training); found an empty batch")
        if training and f.shape[0] == 1:
            raise RegBNShapeError(
                "RegBN expects more than 1 sample in training, to fit f on g across the batch; found 1. "
                "Use a larger batch, drop the last one, or call eval()"
            )

    def _check_one(self, name: str, x: Tensor, channels: int, layer_dim: tuple[int, ...], mask: Tensor | None) -> None:
        any_length = self.options.reduce == "mean"
        fits = x.dim() >= 2 and x.shape[1] == channels and (any_length or x.shape[2:] == layer_dim)
        if not (fits and x.is_floating_point()):
            sizes = ", ".join(map(str, (channels, *layer_dim)))
            wanted = f"floating-point {name} of shape [B, {sizes}{', *positions' if any_length else ''}]"
            raise RegBNShapeError(f"RegBN expects {wanted}; found {x.dtype} {list(x.shape)}")
        if mask is None:
            return
        if not any_length:
            raise RegBNShapeError(f"{name}_mask needs reduce='mean'; this RegBN has reduce='flatten'")
        positions = x.shape[:1] + x.shape[2:]
        if mask.shape != positions:
            raise RegBNShapeError(f"RegBN expects {name}_mask of shape {list(positions)}; found {list(mask.shape)}")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *rest: Any
    ) -> None:
        """Take the published layer's state dict too: it has no moments and may hold norms that are off here."""
        missing = [name for name in _STATE if prefix + name not in state_dict]
        if len(missing) == len(_STATE) and prefix + "W" in state_dict:
            for name in missing:
                state_dict[prefix + name] = torch.zeros_like(getattr(self, name))
            for name in _NORMS:
                if isinstance(getattr(self, name), nn.Identity):
                    for key in [key for key in state_dict if key.startswith(f"{prefix}{name}.")]:
                        del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *rest)

    def extra_repr(self) -> str:
        m, n = self.projection_shape
        options = self.options
        return (
            f"f=[{', '.join(map(str, (self.f_num_channels, *self.f_layer_dim)))}], "
            f"g=[{', '.join(map(str, (self.g_num_channels, *self.g_layer_dim)))}], W=[{m}, {n}], "
            f"constraint={options.constraint}, reduce={options.reduce}, replace={options.replace}"
        )


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise RegBNShapeError(f"RegBN expects {name} to hold integers of at least 1; found {value!r}")
    return int(value)


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _mean_over_positions(x: Tensor, mask: Tensor | None) -> Tensor:
    """[B, C, *positions] -> [B, C], over the positions that the mask keeps (0 where it keeps none)."""
    if x.dim() == 2:
        return x if mask is None else x * mask[:, None].to(x.dtype)
    flat = x.flatten(2)
    if mask is None:
        return flat.mean(-1)
    keep = mask.flatten(1)[:, None, :]
    return torch.where(keep, flat, 0.0).sum(-1) / keep.sum(-1).clamp_min(1)


Number = TypeVar("Number", float, Tensor)


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
