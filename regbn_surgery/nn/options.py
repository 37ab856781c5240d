"""What may be set on each RegBN module, as plain values: one list for operator, rules file and docs.

Imports no torch, so that a rules file can be checked, and `--help` printed, without waiting for it.
Sizes are left out: they come from the tensors at the site.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, get_args

from .._errors import RegBNOptionError
from .._spelling import did_you_mean

Constraint = Literal["smoother", "frobenius", "fixed", "gcv"]
LambdaScale = Literal["relative", "absolute"]
StepSize = Literal["mean", "rms"]
Reduce = Literal["flatten", "mean"]
Fit = Literal["batch", "running"]
Replace = Literal["both", "f"]
Residual = Literal["raw", "normalized"]
LambdaGrad = Literal["constant", "implicit"]
Projection = Literal["auto", "dense", "low_rank"]
Form = Literal["auto", "dual", "primal"]

CHOICES: dict[str, tuple[str, ...]] = {
    "constraint": get_args(Constraint),
    "lam_scale": get_args(LambdaScale),
    "step_size": get_args(StepSize),
    "reduce": get_args(Reduce),
    "fit": get_args(Fit),
    "replace": get_args(Replace),
    "residual": get_args(Residual),
    "lambda_grad": get_args(LambdaGrad),
    "projection": get_args(Projection),
    "form": get_args(Form),
}


#: One line on each option, in the order in which they are documented.
DOCS: dict[str, str] = {
    "beta1": "decay of the mean size of the projection's change (first moment), in [0, 1)",
    "beta2": "decay of its mean square (second moment), in [0, 1)",
    "momentum": "scale of the share of the batch's projection that enters the running one",
    "correct_start": "correct the running W for its start at zero, as Adam corrects its moments",
    "steps_per_epoch": "count epochs of so many training steps in the correction of the moments, as the published code "
    "does with `n_epoch`; null counts steps",
    "step_size": "size of the change of W that sets the share: mean, its mean absolute value (published); "
    "rms, its root mean square, by one product with W and no copy of it (a low-rank W always takes this)",
    "normalize_input": "normalise f and g before the projection is fitted",
    "normalize_output": "layer-normalise the outputs over channels and positions",
    "affine": "give the norms a learned weight and bias",
    "sigma_THR": "singular values of g not above this share of the largest are replaced by sigma_MIN",
    "sigma_MIN": "what such singular values are replaced by (0 drops their directions)",
    "verbose": "log lambda and the size of the change at each training step (level INFO)",
    "constraint": "equation that sets lambda: smoother, ||K (K + lambda I)^-1||_F = 1, as the published code; "
    "frobenius, ||W||_F = 1, as the paper; fixed, lambda is `lam`; gcv, lambda of the least generalised "
    "cross-validation score of the batch",
    "lam": "lambda where constraint is fixed; null otherwise",
    "lam_scale": "what `lam` is in units of: relative, the mean of the eigenvalues that K can have above 0, "
    "tr(K) / min(samples, features of g), so that it does not depend on the scale of g; absolute, as it is",
    "centre": "take the batch means (in evaluation the running mean of g) off f and g before the fit, so that neither "
    "an offset uses the constraint up nor g enters an f that only has a mean",
    "reduce": "flatten: fixed sizes, each position has its own rows of W; "
    "mean: fit on the means over positions, any number of them",
    "fit": "in training subtract with the projection of this batch, or with the running one from before "
    "the step (for causal streams)",
    "replace": "return both outputs normalised, or g as it came",
    "residual": "form f - g W from the inputs as they came (published) or as they were fitted",
    "lambda_grad": "hold lambda constant in the backward pass (published) or differentiate its equation",
    "projection": "keep the running W whole, as factors of rank `rank`, or choose by `max_dense_gib`",
    "rank": "columns of the factors of a low-rank W (default 64; never more than the smaller side of W)",
    "form": "solve in the batch (dual, b x b) or in the features of g (primal, m x m); auto takes the cheaper",
    "max_dense_gib": "largest dense W in GiB: beyond it dense is refused and auto takes low_rank",
    "sync": "fit on the joined batch of all ranks of torch.distributed, as SyncBatchNorm does",
}


@dataclass(frozen=True)
class RegBNOptions:
    """The options of one RegBN module, every one of them a plain JSON value (see `describe`).

    Raises `RegBNOptionError` where a value is of the wrong type, out of range, or contradicts another one.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    momentum: float = 0.02
    correct_start: bool = False
    steps_per_epoch: int | None = None
    step_size: StepSize = "mean"
    normalize_input: bool = False
    normalize_output: bool = True
    affine: bool = False
    sigma_THR: float = 0.0  # noqa: N815 (the published name)
    sigma_MIN: float = 0.0  # noqa: N815 (the published name)
    verbose: bool = False
    constraint: Constraint = "smoother"
    lam: float | None = None
    lam_scale: LambdaScale = "relative"
    centre: bool = False
    reduce: Reduce = "flatten"
    fit: Fit = "batch"
    replace: Replace = "both"
    residual: Residual = "raw"
    lambda_grad: LambdaGrad = "constant"
    projection: Projection = "dense"
    rank: int | None = None
    form: Form = "auto"
    max_dense_gib: float = 1.0
    sync: bool = False

    def __post_init__(self) -> None:
        for entry in fields(self):
            check_value(entry.name, getattr(self, entry.name))
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.constraint == "fixed" and self.lam is None:
            raise RegBNOptionError("constraint='fixed' needs lam, as in lam=0.1 (relative to the mean eigenvalue of K)")
        if self.constraint != "fixed" and (self.lam is not None or self.lam_scale != "relative"):
            given = f"lam={self.lam}" if self.lam is not None else f"lam_scale={self.lam_scale!r}"
            raise RegBNOptionError(
                f"{given} was given with constraint={self.constraint!r}, which finds lambda itself; "
                "set constraint to 'fixed', or leave it out"
            )
        if self.constraint == "gcv" and self.sigma_THR > 0.0:
            raise RegBNOptionError(
                f"constraint='gcv' scores ridge fits, and sigma_THR={self.sigma_THR} makes another kind of fit; "
                "leave sigma_THR at 0, or take another constraint"
            )
        if self.rank is not None and self.projection == "dense":
            raise RegBNOptionError(
                f"rank={self.rank} was given with projection='dense', which keeps W whole; "
                "set projection to 'low_rank' (or 'auto'), or leave rank out"
            )
        if self.projection != "dense" and self.form == "primal":
            raise RegBNOptionError(
                f"form='primal' solves with an m x m matrix, which projection={self.projection!r} avoids; "
                "leave form out or set it to 'dual'"
            )
        if self.sigma_THR > 0.0 and self.lambda_grad == "implicit":
            raise RegBNOptionError(
                f"lambda_grad='implicit' differentiates the equation of lambda, which sigma_THR={self.sigma_THR} "
                "makes jump; leave lambda_grad at 'constant', or sigma_THR at 0"
            )
        if self.residual == "normalized" and self.reduce == "mean" and self.normalize_input:
            raise RegBNOptionError(
                "residual='normalized' subtracts from the features as they were fitted, but reduce='mean' fits on "
                "normalised means and subtracts from positions that were not normalised; leave residual at 'raw', "
                "or normalize_input at false"
            )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all options, in the order in which they are documented."""
        return tuple(entry.name for entry in fields(cls))

    @classmethod
    def describe(cls) -> dict[str, str]:
        """Each option's name with its one-line description."""
        return dict(DOCS)


INTEGERS = frozenset({"rank", "steps_per_epoch"})
_BOOLEANS = frozenset({"normalize_input", "normalize_output", "affine", "verbose", "sync", "centre", "correct_start"})
_NULLABLE = frozenset({"rank", "steps_per_epoch", "lam"})
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "beta1": (lambda x: 0.0 <= x < 1.0, "a number in [0, 1)"),
    "beta2": (lambda x: 0.0 <= x < 1.0, "a number in [0, 1)"),
    "momentum": (lambda x: 0.0 <= x <= 1.0, "a number in [0, 1]"),
    "sigma_THR": (lambda x: x >= 0.0, "a number that is not negative"),
    "sigma_MIN": (lambda x: x >= 0.0, "a number that is not negative"),
    "lam": (lambda x: x >= 0.0, "a number that is not negative, or null"),
    "max_dense_gib": (lambda x: x > 0.0, "a number of GiB above 0"),
    "rank": (lambda x: x >= 1, "an integer of at least 1, or null"),
    "steps_per_epoch": (lambda x: x >= 1, "an integer of at least 1, or null"),
}


def check_value(name: str, value: object) -> None:
    """Hold one option to its type and range. Raises `RegBNOptionError`. What options say together is not looked at."""
    _check_type(name, value)
    if name in _RANGES and isinstance(value, int | float):
        good, wanted = _RANGES[name]
        _check(name, value, good(value), wanted)


def _check_type(name: str, value: object) -> None:
    null = " or null" if name in _NULLABLE else ""
    if null and value is None:
        return
    if name in CHOICES:
        wanted = "one of " + ", ".join(CHOICES[name])
        meant = did_you_mean(value, CHOICES[name]) if isinstance(value, str) else ""
        _check(name, value, isinstance(value, str) and value in CHOICES[name], wanted, meant)
    elif name in _BOOLEANS:
        _check(name, value, isinstance(value, bool), "true or false")
    elif name in INTEGERS:
        _check(name, value, isinstance(value, int) and not isinstance(value, bool), f"an integer{null}")
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        _check(name, value, number, f"a finite number{null}")


def _check(name: str, value: object, good: bool, wanted: str, meant: str = "") -> None:
    if not good:
        raise RegBNOptionError(f"RegBN option {name} must be {wanted}; found {value!r}{meant}")
