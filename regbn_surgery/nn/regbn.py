"""The RegBN module: normalises the features f with respect to the features g."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as with_options
from math import prod
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from . import _checks, functional
from ._dense import PrimalUpdate
from ._features import Features, mean_over_positions, prepare
from ._multiplier import Limits
from ._norms import input_norm, output_norm
from ._ranks import Ranks, joined
from ._running import RunningState, Update
from .options import Constraint, Fit, Form, LambdaGrad, Projection, Reduce, RegBNOptions, Replace, Residual

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class RegBN(RunningState):
    """Subtracts from f what is linearly explained by g: `f' = norm(f - g W)`, `g' = norm(g)`.

    With F and G the flat fitted features [b, n] and [b, m], W solves the ridge problem of each training batch,
    `W_batch = (G^T G + lambda I)^-1 G^T F`, with lambda >= 0 set by one of two constraints:

    - `constraint="smoother"` (default; what the published code solves): `||K (K + lambda I)^-1||_F = 1`, K = G G^T;
    - `constraint="frobenius"` (the published formulation): `||W_batch||_F = 1`.

    Where the left side is at most 1 at lambda = 0 lambda stays at its floor (b times the float32 rounding unit times
    the largest eigenvalue of K). In training the batch's own W is subtracted, with gradient; a running W follows by
    `W <- (1 - share) W + share W_batch` with an adaptive share, and is subtracted in evaluation. Source: RegBN
    (NeurIPS 2023); the closed form and the root: `regbn_surgery.nn.functional` and `_multiplier`.

    Shapes, with `reduce="flatten"`: f `[B, C_f, *f_layer_dim]`, g `[B, C_g, *g_layer_dim]`, any number of spatial
    axes on either side; W is `[m, n]`, m and n the flat sizes of g and f. With `reduce="mean"`: f `[B, C_f, *any]`,
    g `[B, C_g, *any]`, empty layer dims, W `[C_g, C_f]`. Outputs have the shapes and dtypes of the inputs.

    The sizes come first; `gpu` is accepted for the published signature and ignored (use `.to(device)`). Every other
    argument is described in `RegBNOptions`. What lasts is in the state dict: see `RunningState`.

    Raises `RegBNOptionError` for options that contradict each other, `RegBNShapeError` (a `ValueError`) for sizes
    and inputs that do not fit, among them a batch of 1 in training, as BatchNorm does.

    >>> regbn = RegBN(512, 64, [], [7, 7], normalize_input=True)
    >>> f, g = regbn(torch.randn(50, 512), torch.randn(50, 64, 7, 7))
    """

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
        options = RegBNOptions(
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
        f_layer_dim = tuple(_checks.positive_size("f_layer_dim", size) for size in f_layer_dim)
        g_layer_dim = tuple(_checks.positive_size("g_layer_dim", size) for size in g_layer_dim)
        _checks.check_layer_dims(reduce, f_layer_dim, g_layer_dim)
        f_num_channels = _checks.positive_size("f_num_channels", f_num_channels)
        g_num_channels = _checks.positive_size("g_num_channels", g_num_channels)
        m, n = g_num_channels * prod(g_layer_dim), f_num_channels * prod(f_layer_dim)
        super().__init__(options, _checks.choose_projection(options, m, n), m, n)
        self.f_num_channels, self.f_layer_dim = f_num_channels, f_layer_dim
        self.g_num_channels, self.g_layer_dim = g_num_channels, g_layer_dim
        self.projection_shape = (m, n)
        self.process_group: ProcessGroup | None = None
        self._make_norms()

    def _make_norms(self) -> None:
        options = self.options
        by_position = options.reduce == "mean"
        f, g = (self.f_num_channels, self.f_layer_dim), (self.g_num_channels, self.g_layer_dim)
        before, after = options.normalize_input, options.normalize_output
        # With a running fit the fitted features reach no output: weights of their norms would never be trained.
        learned = options.affine and not (options.fit == "running" and options.residual == "raw")
        self.norm_f = input_norm(*f, learned) if before else nn.Identity()
        self.norm_g = input_norm(*g, learned) if before else nn.Identity()
        self.norm_f_out = output_norm(*f, options.affine, by_position) if after else nn.Identity()
        after = after and options.replace == "both"
        self.norm_g_out = output_norm(*g, options.affine, by_position) if after else nn.Identity()

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

        The inside runs in float32 (float64 for float64 inputs or state), under autocast too.
        """
        training = self.training if is_training is None else is_training
        ranks = joined(self.options.sync, self.process_group) if training else None
        any_length = self.options.reduce == "mean"
        _checks.check_features("f", f, self.f_num_channels, self.f_layer_dim, f_mask, any_length)
        _checks.check_features("g", g, self.g_num_channels, self.g_layer_dim, g_mask, any_length)
        _checks.check_batch(f, g, training, ranks is not None)
        kind = f.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self._normalize(f, g, f_mask, g_mask, training, n_epoch, multiplier, ranks)
        return self._normalize(f, g, f_mask, g_mask, training, n_epoch, multiplier, ranks)

    def _normalize(
        self,
        f: Tensor,
        g: Tensor,
        f_mask: Tensor | None,
        g_mask: Tensor | None,
        training: bool,
        n_epoch: int | None,
        multiplier: Tensor | None,
        ranks: Ranks | None,
    ) -> tuple[Tensor, Tensor]:
        work = torch.promote_types(torch.promote_types(f.dtype, g.dtype), self.change_mean.dtype)
        given = (f.to(work), g.to(work))
        pooled = given
        if self.options.reduce == "mean":
            pooled = (mean_over_positions(given[0], f_mask), mean_over_positions(given[1], g_mask))
        normalized_residual = self.options.residual == "normalized"
        norms = None
        if self.options.normalize_input and (training or normalized_residual):
            norms = (self.norm_f, self.norm_g)
        features = prepare(given, pooled, norms, training, normalized_residual, ranks)
        if training:
            residual = self._fit(features, n_epoch, multiplier, ranks)
        else:
            residual = self.subtract(features.f_raw, features.g_raw, self.factors)
        f_out = self.norm_f_out(features.restore(residual, self.options.reduce == "mean"))
        g_out = self.norm_g_out(given[1]) if self.options.replace == "both" else g
        return f_out.to(f.dtype), g_out.to(g.dtype)

    # -- the fit -----------------------------------------------------------------------------------------------

    @property
    def problem(self) -> functional.Problem:
        """The part of the options that decides the fit."""
        options = self.options
        limits = Limits(torch.finfo(torch.float32).eps, options.sigma_THR, options.sigma_MIN)
        return functional.Problem(options.constraint, options.lambda_grad, limits)

    def _fit(self, features: Features, n_epoch: int | None, multiplier: Tensor | None, ranks: Ranks | None) -> Tensor:
        """Fit, move the running state, and return the residual [b, n] of this rank's rows."""
        G, F, f, g = features.g_fit, features.f_fit, features.f_raw, features.g_raw
        before = self.snapshot() if self.options.fit == "running" else None
        sizes = None if ranks is None else ranks.batch_sizes(len(G), G.device)
        residual = None
        if self._takes_primal(len(G) if sizes is None else sum(sizes)):
            target, solution = functional.primal(G, F, self.problem, multiplier, ranks)
            update: Update = PrimalUpdate(self.factors[0], target.detach().to(self.factors[0].dtype))
            if before is None:
                residual = torch.addmm(f, g, target, alpha=-1.0)
        else:
            if ranks is not None and sizes is not None:
                rows = ranks.join_rows(torch.cat([G, F], dim=1), sizes)
                G, F = rows[:, : G.shape[1]], rows[:, G.shape[1] :]
            fit = functional.dual(G, F, self.problem, multiplier)
            solution = fit[-1]
            update = self.update_towards(G, solution.spanned.to(F.dtype) @ F.detach())
            if before is None:
                residual = functional.subtract_dual(f, g, G, F, fit)
        self.advance(update, solution, n_epoch, features.moments)
        return residual if residual is not None else self.subtract(f, g, before or self.factors)

    def _takes_primal(self, batch_size: int) -> bool:
        form = self.options.form
        if self.projection == "low_rank":
            return False
        return form == "primal" or (form == "auto" and self.projection_shape[0] < batch_size)

    def extra_repr(self) -> str:
        m, n = self.projection_shape
        options = self.options
        return (
            f"f=[{', '.join(map(str, (self.f_num_channels, *self.f_layer_dim)))}], "
            f"g=[{', '.join(map(str, (self.g_num_channels, *self.g_layer_dim)))}], W=[{m}, {n}] {self.projection}, "
            f"constraint={options.constraint}, reduce={options.reduce}, replace={options.replace}"
        )


Model = TypeVar("Model", bound=nn.Module)


def convert_sync_regbn(module: Model, process_group: ProcessGroup | None = None) -> Model:
    """Make every RegBN in `module` fit on the joined batch of the ranks of `process_group` (None: all of them).

    The counterpart of `nn.SyncBatchNorm.convert_sync_batchnorm`; changes the modules in place and returns `module`.
    """
    for child in module.modules():
        if isinstance(child, RegBN):
            child.options = with_options(child.options, sync=True)
            child.process_group = process_group
    return module
