"""What may be set on each RegBN module, as plain values: one list for operator, rules file and docs.

Imports no torch, so that a rules file can be checked, and `--help` printed, without waiting for it.
Sizes are left out: they come from the tensors at the site.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from .._errors import RegBNOptionError

Constraint = Literal["smoother", "frobenius"]
Reduce = Literal["flatten", "mean"]
Fit = Literal["batch", "running"]
Replace = Literal["both", "f"]
Residual = Literal["raw", "normalized"]
LambdaGrad = Literal["constant", "implicit"]
Projection = Literal["auto", "dense", "low_rank"]
Form = Literal["auto", "dual", "primal"]

CHOICES: dict[str, tuple[str, ...]] = {
    "constraint": get_args(Constraint),
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
    "normalize_input": "normalise f and g before the projection is fitted",
    "normalize_output": "layer-normalise the outputs over channels and positions",
    "affine": "give the norms a learned weight and bias",
    "sigma_THR": "singular values of g not above this share of the largest are replaced by sigma_MIN",
    "sigma_MIN": "what such singular values are replaced by (0 drops their directions)",
    "verbose": "log lambda and the size of the change at each training step (level INFO)",
    "constraint": "equation that sets lambda: smoother, ||K (K + lambda I)^-1||_F = 1, as the published code; "
    "frobenius, ||W||_F = 1, as the paper",
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
    normalize_input: bool = False
    normalize_output: bool = True
    affine: bool = False
    sigma_THR: float = 0.0  # noqa: N815 (the published name)
    sigma_MIN: float = 0.0  # noqa: N815 (the published name)
    verbose: bool = False
    constraint: Constraint = "smoother"
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
            _check_type(entry.name, getattr(self, entry.name))
        for name in ("beta1", "beta2"):
            _check(name, getattr(self, name), 0.0 <= getattr(self, name) < 1.0, "a number in [0, 1)")
        _check("momentum", self.momentum, 0.0 <= self.momentum <= 1.0, "a number in [0, 1]")
        for name in ("sigma_THR", "sigma_MIN"):
            value = getattr(self, name)
            _check(name, value, value >= 0.0, "a number that is not negative")
        _check("max_dense_gib", self.max_dense_gib, self.max_dense_gib > 0.0, "a number of GiB above 0")
        _check("rank", self.rank, self.rank is None or self.rank >= 1, "an integer of at least 1, or null")
        self._check_combinations()

    def _check_combinations(self) -> None:
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


_INTEGERS = frozenset({"rank"})
_BOOLEANS = frozenset({"normalize_input", "normalize_output", "affine", "verbose", "sync"})


def _check_type(name: str, value: object) -> None:
    if name in CHOICES:
        wanted = "one of " + ", ".join(CHOICES[name])
        _check(name, value, isinstance(value, str) and value in CHOICES[name], wanted)
    elif name in _BOOLEANS:
        _check(name, value, isinstance(value, bool), "true or false")
    elif name in _INTEGERS:
        whole = isinstance(value, int) and not isinstance(value, bool)
        _check(name, value, value is None or whole, "an integer or null")
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        _check(name, value, number, "a finite number")


def _check(name: str, value: object, good: bool, wanted: str) -> None:
    if not good:
        raise RegBNOptionError(f"RegBN option {name} must be {wanted}; found {value!r}")
