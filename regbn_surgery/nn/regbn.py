"""The RegBN module: normalises the features f with respect to the features g."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace as with_options
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from . import _checks, functional
from ._compilers import OLD_COMPILER
from ._dense import PrimalUpdate
from ._features import Features, Preparation, mean_over_positions
from ._linalg import accumulation_dtype, as_dtype
from ._multiplier import Limits
from ._no_gradient import without_gradient
from ._norms import input_norm, output_norm
from ._presence import Rows, present_rows, taking_part
from ._ranks import Ranks, conversion_of, joined
from ._running import RunningState, Step, Update
from ._symbols import as_one_call_for_two, symbols_in
from .options import (
    Constraint,
    Fit,
    Form,
    LambdaGrad,
    LambdaScale,
    Projection,
    Reduce,
    RegBNOptions,
    Replace,
    Residual,
    StepSize,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Call(NamedTuple):
    """What a call says beside f and g: see `RegBN.forward`; `ranks` are those that join their batches."""

    f_mask: Tensor | None
    g_mask: Tensor | None
    present: Tensor | None
    training: bool
    n_epoch: int | None
    multiplier: Tensor | None
    ranks: Ranks | None
    zeros_absent: bool


class RegBN(RunningState):
    """Subtracts from f what is linearly explained by g: `f' = norm(f - g W)`, `g' = norm(g)`.

    With F and G the flat fitted features [b, n] and [b, m] and K = G G^T, W solves the ridge problem of each training
    batch, `W_batch = (G^T G + lambda I)^-1 G^T F`, with lambda >= 0 set in one of four ways:

    - `constraint="smoother"` (default; what the published code solves): `||K (K + lambda I)^-1||_F = 1`. It removes
      about one direction of g from f, however many they share;
    - `constraint="frobenius"` (the published formulation): `||W_batch||_F = 1`. How much is removed
      depends on the scales;
    - `constraint="fixed"`: `lambda = lam tr(K) / min(b, m)`, or `lam` itself with `lam_scale="absolute"`. It removes
      every direction whose eigenvalue is well above lambda;
    - `constraint="gcv"`: the lambda of the least `||F - G W||^2 / (b - tr(K (K + lambda I)^-1))^2`, the generalised
      cross-validation score of the batch. It removes the directions that predict f; where none does, almost nothing.

    What each removes is measured in docs/regbn.md. In the first two lambda stays at its floor (the largest
    eigenvalue of K times the float32 rounding unit times b, or m in the primal form) where the left side is at most 1
    there. With `centre=True` the
    means over the batch are subtracted from f and g before the fit, and `f' = norm(f - (g - mean(g)) W)`, with a
    running mean in evaluation; without it a mean of f and one of g count as dependence.

    In training the batch's own W is subtracted, with gradient; a running W follows by
    `W <- (1 - share) W + share W_batch` with an adaptive share, and is subtracted in evaluation. Source: RegBN
    (NeurIPS 2023); the closed form and lambda: `regbn_surgery.nn.functional`, `_multiplier` and `_gcv`.

    Shapes, with `reduce="flatten"`: f `[B, C_f, *f_layer_dim]`, g `[B, C_g, *g_layer_dim]`, any number of spatial
    axes on either side; W is `[m, n]`, m and n the flat sizes of g and f. With `reduce="mean"`: f `[B, C_f, *any]`,
    g `[B, C_g, *any]`, empty layer dims, W `[C_g, C_f]`. Outputs have the shapes and dtypes of the inputs.

    The sizes come first; `gpu` is accepted for the published signature and ignored (use `.to(device)`). Every other
    argument is described in `regbn_surgery.nn.RegBNOptions` and docs/options.md. What persists is in the state dict,
    whose keys docs/by_hand.md lists; it takes that of the published module as well.

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
        correct_start: bool = False,
        steps_per_epoch: int | None = None,
        step_size: StepSize = "mean",
        normalize_input: bool = False,
        normalize_output: bool = True,
        affine: bool = False,
        sigma_THR: float = 0.0,
        sigma_MIN: float = 0.0,
        verbose: bool = False,
        constraint: Constraint = "smoother",
        lam: float | None = None,
        lam_scale: LambdaScale = "relative",
        centre: bool = False,
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
            correct_start=correct_start,
            steps_per_epoch=steps_per_epoch,
            step_size=step_size,
            normalize_input=normalize_input,
            normalize_output=normalize_output,
            affine=affine,
            sigma_THR=sigma_THR,
            sigma_MIN=sigma_MIN,
            verbose=verbose,
            constraint=constraint,
            lam=lam,
            lam_scale=lam_scale,
            centre=centre,
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
        present: Tensor | None = None,
        multiplier: Tensor | None = None,
        zeros_absent: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """`(f', g')` in the shapes and dtypes of f and g.

        `is_training` None means the module's own mode. `n_epoch` (from 0) reproduces the published bias correction
        `1 - beta^(n_epoch + 1)`; without it steps are counted, or epochs by the option `steps_per_epoch`. The argument
        of that name is accepted and not needed.
        Masks, `[B, *positions]`, True where a position counts, are for `reduce="mean"`: they decide the means.
        `present`, `[B]`, bool: the samples in which both sides are there. Others, and those in which all of f or all
        of g is zero, take no part in the fit, and nothing is subtracted from them. A training batch with fewer than
        two others fits nothing, moves nothing and is counted in `num_skipped`.
        `zeros_absent` False: in evaluation zeros are values like others, and `present` alone says what is missing; for
        calls that get a part of f alone, such as the positions that follow a key-value cache.
        `multiplier` (0-dimensional) replaces the lambda that solves the constraint.

        The inside runs in float32 (float64 for float64 inputs or state), under autocast too.
        """
        if (type(f) is not Tensor or type(g) is not Tensor) and next(symbols_in((f, g)), None) is not None:
            more = {"f_mask": f_mask, "g_mask": g_mask, "present": present, "multiplier": multiplier}
            given = {"is_training": is_training, "n_epoch": n_epoch, **more}
            return as_one_call_for_two(self, f, g, **given, zeros_absent=zeros_absent)
        training = self._is_fitted(f, self.training if is_training is None else is_training, zeros_absent)
        if training and OLD_COMPILER and torch.compiler.is_compiling():
            more = {"f_mask": f_mask, "g_mask": g_mask, "present": present, "multiplier": multiplier}
            return self._outside_graphs(f, g, is_training, n_epoch, **more, zeros_absent=zeros_absent)
        ranks = joined(self.options.sync, self.process_group) if training else None
        any_length = self.options.reduce == "mean"
        _checks.check_features("f", f, self.f_num_channels, self.f_layer_dim, f_mask, any_length)
        _checks.check_features("g", g, self.g_num_channels, self.g_layer_dim, g_mask, any_length)
        _checks.check_batch(f, g, training, ranks is not None, present)
        call = Call(f_mask, g_mask, present, training, n_epoch, multiplier, ranks, zeros_absent)
        kind = f.device.type
        # The compiler of torch 2.6 refuses to ask which kinds have an autocast.
        has_autocast = kind == "cpu" or (
            kind != "meta" if torch.compiler.is_compiling() else torch.amp.is_autocast_available(kind)
        )
        if has_autocast and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self._normalize(f, g, call)
        return self._normalize(f, g, call)

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _outside_graphs(self, f: Tensor, g: Tensor, *arguments: Any, **more: Any) -> tuple[Tensor, Tensor]:
        return self.forward(f, g, *arguments, **more)

    def _normalize(self, f: Tensor, g: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        work = torch.promote_types(torch.promote_types(f.dtype, g.dtype), self.change_mean.dtype)
        given = (as_dtype(f, work), as_dtype(g, work))
        pooled = given
        if self.options.reduce == "mean":
            pooled = (mean_over_positions(given[0], call.f_mask), mean_over_positions(given[1], call.g_mask))
        normalized_residual = self.options.residual == "normalized"
        norms = None
        if self.options.normalize_input and (call.training or normalized_residual):
            norms = (self.norm_f, self.norm_g)
        prepare = Preparation(norms, call.training, normalized_residual)
        if call.training:
            rows = taking_part(*pooled, call.present, call.ranks)
            features = prepare.features(given, pooled, rows, call.ranks)
            residual = self._fit(features, rows, call)
        else:
            # An absent g that is zero subtracts nothing anyway, unless its mean is taken off.
            sides = pooled if self.options.centre else pooled[:1]
            features = prepare.features(given, pooled, None, None)
            present = present_rows(sides, call.present) if call.zeros_absent else call.present
            residual = self.subtract(features.f_raw, features.g_raw, self.running, present)
        f_out = self.norm_f_out(features.restore(residual, self.options.reduce == "mean"))
        g_out = self.norm_g_out(given[1]) if self.options.replace == "both" else g
        return as_dtype(f_out, f.dtype), as_dtype(g_out, g.dtype)

    def _is_fitted(self, f: Tensor, training: bool, zeros_absent: bool) -> bool:
        """Whether a call fits its batch: in training; while `update_regbn` averages, wherever a batch can be fitted."""
        if self.averaged is None:
            return training
        return zeros_absent and (len(f) > 1 or joined(self.options.sync, self.process_group) is not None)

    # -- the fit -----------------------------------------------------------------------------------------------

    @property
    def problem(self) -> functional.Problem:
        """The part of the options that decides the fit."""
        options = self.options
        limits = Limits(torch.finfo(torch.float32).eps, options.sigma_THR, options.sigma_MIN)
        fixed = (options.lam or 0.0, options.lam_scale == "relative")
        return functional.Problem(options.constraint, options.lambda_grad, limits, *fixed, options.centre)

    def _fit(self, features: Features, rows: Rows, call: Call) -> Tensor:
        """Fit, move the running state, and return the residual [b, n] of this rank's rows."""
        before = self.snapshot() if self.options.fit == "running" else None
        seen = features.for_fit(rows, self.options.centre, call.ranks)
        G, F, f, g = seen.g_fit, seen.f_fit, seen.f_raw, seen.g_raw
        residual = None
        if self._takes_primal(len(G) if rows.sizes is None else sum(rows.sizes)):
            W, unit, solution = functional.primal_in_units(G, F, self.problem, call.multiplier, call.ranks, rows.count)
            target = functional.in_units(W.detach(), unit)
            rms = self.options.step_size == "rms"
            update: Update = PrimalUpdate(self.factors[0], target.to(self.factors[0].dtype), rms)
            batch_norm = torch.linalg.vector_norm(target, dtype=solution.multiplier.dtype)
            if before is None:
                residual = torch.addmm(f, functional.in_units(g, unit), W, alpha=-1.0)
        else:
            if call.ranks is not None and rows.sizes is not None:
                joined_rows = call.ranks.join_rows(torch.cat([G, F], dim=1), rows.sizes)
                G, F = joined_rows[:, : G.shape[1]], joined_rows[:, G.shape[1] :]
            fit = functional.dual(G, F, self.problem, call.multiplier, rows.count)
            solution = fit[-1]
            left, right, batch_norm = functional.factors_in_units(G, F, fit[1], solution)
            update = self.update_towards(left, right)
            if before is None:
                residual = functional.subtract_dual(f, g, G, F, fit)
        if residual is None:
            residual = self.subtract(f, features.g_raw, before or self.running, rows.present)
        removed = _share_removed(f, residual)
        step = Step(update, solution, rows, call.n_epoch, seen.moments, seen.g_mean, batch_norm, removed, f=f, g=g)
        self.advance(step)
        return residual

    def _takes_primal(self, batch_size: int) -> bool:
        form = self.options.form
        wide = self.projection_shape[0] >= batch_size
        if self.projection == "low_rank" or (wide and self.options.constraint == "gcv"):
            return False  # the score needs the residual of each lambda, which only the dual form has exactly there
        return form == "primal" or (form == "auto" and self.projection_shape[0] < batch_size)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As `nn.Module.add_module`, by which a conversion of BatchNorm to SyncBatchNorm takes RegBN along."""
        conversion = conversion_of(sys._getframe(1))
        if conversion is not None:
            convert_sync_regbn(self, conversion.group)
        super().add_module(name, module)

    def __prepare_scriptable__(self) -> None:
        """Raises CaptureError: torch.jit.script cannot compile RegBN, and says so in words that name no RegBN."""
        _checks.refuse_script()

    def extra_repr(self) -> str:
        m, n = self.projection_shape
        options = self.options
        centred = ", centre" if options.centre else ""
        return (
            f"f=[{', '.join(map(str, (self.f_num_channels, *self.f_layer_dim)))}], "
            f"g=[{', '.join(map(str, (self.g_num_channels, *self.g_layer_dim)))}], W=[{m}, {n}] {self.projection}, "
            f"constraint={options.constraint}{centred}, reduce={options.reduce}, replace={options.replace}"
        )


@without_gradient
def _share_removed(f: Tensor, residual: Tensor) -> Tensor:
    """`||f - f'|| / ||f||`, 0-dimensional; 0 where f is."""
    wide = accumulation_dtype(f.device)
    whole = torch.linalg.vector_norm(f, dtype=wide)
    taken: Tensor = torch.linalg.vector_norm(f - residual, dtype=wide)
    share: Tensor = taken / whole.clamp_min(torch.finfo(f.dtype).tiny)
    return share


Model = TypeVar("Model", bound=nn.Module)


def convert_sync_regbn(module: Model, process_group: ProcessGroup | None = None) -> Model:
    """Make every RegBN in `module` fit on the joined batch of the ranks of `process_group` (None: all of them).

    The counterpart of `nn.SyncBatchNorm.convert_sync_batchnorm`, which converts RegBN as well. Changes the modules in
    place and returns `module`.
    """
    for child in module.modules():
        if isinstance(child, RegBN):
            child.options = with_options(child.options, sync=True)
            child.process_group = process_group
    return module
