"""What figures on the dependence at a site mean for the RegBN there: sentences for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ._codes import coded
from ._diagnosis import Dependence
from .nn.options import RegBNOptions

RISEN = 0.02  # of explained variance: below it before and after count as the same
OFFSET = 0.1  # share of the mean in the size of g from which it matters
LITTLE = 0.05  # explained variance that is hardly worth a RegBN
BEHIND = 0.9


@dataclass(frozen=True)
class Evidence:
    """What was measured of one fitted RegBN.

    `offset`: ||mean g||^2 / mean ||g||^2. `batch`: the samples of its batches. `running_to_batch`: the size of what the
    running projection subtracts over that of what each batch's own does.
    """

    site: str
    options: RegBNOptions
    before: Dependence
    after: Dependence
    offset: float
    batch: int
    running_to_batch: float


def risen(found: Evidence) -> str | None:
    """A sentence where RegBN has put dependence in, with the likely cause and its cure; None where it has not."""
    before, after = found.before.explained_variance, found.after.explained_variance
    if after <= before + RISEN:
        return None
    head = f"`{found.site}`: after RegBN g explains more of f than before ({before:.1%} -> {after:.1%})"
    if not found.options.centre and found.offset > OFFSET:
        cause = (
            f"g varies around a mean ({found.offset:.0%} of its size), and the fit has no intercept, so that a "
            "mean of f is explained by g; `regbn: {centre: true}` subtracts the means first"
        )
    else:
        cause = f"The fit of one batch of {found.batch} samples is mostly noise; larger batches help"
        if found.options.constraint != "gcv":
            cause += ", or `regbn: {constraint: gcv}`, which removes little where little is known"
    return coded("RB301", f"{head}. {cause}")


def verdict(found: Evidence) -> Iterator[str]:
    """What the chosen constraint can and cannot remove on these data."""
    before, after = found.before, found.after
    shared = before.shared_directions
    many = f"{shared} shared direction{'' if shared == 1 else 's'}"
    if before.explained_variance < LITTLE:
        none = f"f and g share no direction that shows in {before.samples} samples: nothing to remove"
        little = f"g explains only {max(before.explained_variance, 0.0):.1%} of f: little to remove"
        yield coded("RB302", f"`{found.site}`: {little if shared else none}")
        return
    if not found.running_to_batch:
        return  # it has seen no training step, and subtracts nothing yet
    left = after.explained_variance
    ability = _ability(found.options, shared, enough=left < LITTLE)
    told = f"g explains {max(before.explained_variance, 0.0):.1%} of f before, {max(left, 0.0):.1%} after"
    yield coded("RB303", f"`{found.site}`: {told}, with {many} before; {ability}")
    if found.running_to_batch < BEHIND:
        yield coded(
            "RB304",
            f"`{found.site}`: the running projection subtracts {found.running_to_batch:.0%} of what a batch's own "
            f"({found.batch} samples, as measured here) does: evaluation removes less than training shows. Where the "
            "branches learn, `update_regbn` after training brings it up to date; else larger batches help, since it "
            "holds only what batches have in common",
        )


def _ability(options: RegBNOptions, shared: int, *, enough: bool) -> str:
    if options.constraint == "smoother":
        if enough:
            return "`smoother` takes about one, which is enough here"
        if shared <= 1:
            return "`smoother` takes about one, which is not all here: compare `regbn: {constraint: gcv}`"
        return (
            "`smoother` takes about one in all, whatever their number; `regbn: {constraint: gcv}` takes those it "
            "finds, which helps a part that sees f' alone (compare them by `sweep`)"
        )
    if options.constraint == "frobenius":
        return "`frobenius` holds W to the norm 1: how many that takes depends on the scales of f and g"
    if options.constraint == "fixed":
        unit = "times the mean eigenvalue" if options.lam_scale == "relative" else "in absolute terms"
        return f"`fixed` takes those in which g varies well above lambda, {options.lam:g} {unit}"
    return "`gcv` takes as many as a batch can show"
