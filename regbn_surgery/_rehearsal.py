"""A plan tried on a copy of the model: the tier that each host takes, and pairs with nothing to remove."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import _tree
from ._analysis import MODEL_ERRORS, Analysis
from ._codes import coded, kept
from ._errors import RegBNError
from ._inputs import InputsLike, as_inputs, is_function, shared_axis
from ._leaving_out import perform_borne
from ._rules.naming import home_name
from ._state import preserved, seeded
from ._surgery import RegBNSite, explain, identity
from ._types import Plan, PlannedSite
from .nn._features import mean_over_positions

#: Fewer samples than this tell dependent features from independent ones too seldom.
ENOUGH_SAMPLES = 16
_MOST_SAMPLES = 256
_PERMUTATIONS = 199
#: The share of independent pairs that are taken for dependent.
_LEVEL = 0.05
#: Below this part of their size, features that vary from sample to sample are rounding, or a stream that has collapsed.
_STILL = 1e-4


def rehearse(
    model: nn.Module,
    plan: Plan,
    analysis: Analysis,
    example: InputsLike | None,
    copied: Callable[[nn.Module], nn.Module] = copy.deepcopy,
    *,
    strict: bool = True,
) -> Plan:
    """The plan with the tier of each site, and with what the surgery on a copy has shown: as notes, or as its first
    warning where the surgery fails.

    Sites at which the surgery fails are left out with a warning, as `regbnify` does it, unless `strict`. `example` is
    the user's own; None (or inputs that were made up) tells nothing of what goes with what.
    """
    if not plan.sites:
        return plan
    try:
        twin = copied(model)
        plan = perform_borne(twin, plan, analysis, strict=strict)
    except RegBNError as error:
        failure = coded("RB106", f"tried on a copy, the surgery fails: {error}")
        return dataclasses.replace(plan, warnings=(*kept([failure], plan.ignore), *plan.warnings))
    return examined(twin, plan, analysis, example)


def examined(rewritten: nn.Module, plan: Plan, analysis: Analysis, example: InputsLike | None) -> Plan:
    """A plan that has been done, with the way in which each site went in, and with what the user's example shows of
    its pairs. `plan` and `show` take their notes from here."""
    if not plan.sites:
        return plan
    done = {(site.host, site.name): (report.tier, site) for report in explain(rewritten) for site in report.sites}
    sites = tuple(_done(site, *done.get((site.host, site.name), (None, site))) for site in plan.sites)
    notes = [*plan.notes, *kept(_independent(rewritten, plan, example, analysis.writes_parameters), plan.ignore)]
    return dataclasses.replace(plan, sites=sites, notes=tuple(notes))


def _done(site: PlannedSite, tier: int | None, done: PlannedSite) -> PlannedSite:
    return dataclasses.replace(site, tier=tier, kept_at=done.kept_at)


def _independent(twin: nn.Module, plan: Plan, example: InputsLike | None, writes_parameters: bool) -> Iterator[str]:
    if example is None or is_function(example):
        return
    inputs = as_inputs(example)
    axis = shared_axis(twin, inputs)
    if axis is None or not ENOUGH_SAMPLES <= axis[1] <= _MOST_SAMPLES:
        return
    taken: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(_note(name, module, taken), with_kwargs=True)
        for name, module in twin.named_modules()
        if isinstance(module, RegBNSite)
    ]
    try:
        with preserved(twin, parameters=writes_parameters), seeded(), torch.no_grad(), identity(twin):
            twin.eval()
            args, kwargs = _tree.cloned((inputs.args, inputs.kwargs))
            twin(*args, **kwargs)
    except (RegBNError, *MODEL_ERRORS) as error:
        why = f"{type(error).__name__}: {error}"
        yield coded("RB117", f"the model does not run on all {axis[1]} samples of the example ({why})")
        return
    finally:
        for handle in handles:
            handle.remove()
    for site in plan.sites:
        pair = taken.get(site.path)
        if pair is not None:
            yield from _judge(site, *pair)


def _note(name: str, site: RegBNSite, taken: dict[str, tuple[Tensor, Tensor]]) -> Callable[..., None]:
    """A hook that keeps what RegBN is fitted on at the first call of a site."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in taken:
            return
        f, g, f_mask, g_mask = site.pair_of(*args, **kwargs)
        if site.regbn.options.reduce == "mean":
            f, g = mean_over_positions(f, f_mask), mean_over_positions(g, g_mask)
        taken[name] = f.flatten(1).double(), g.flatten(1).double()

    return hook


def _judge(site: PlannedSite, f: Tensor, g: Tensor) -> Iterator[str]:
    samples = f.shape[0]
    if g.shape[0] != samples or samples < ENOUGH_SAMPLES:
        return
    still = list(_still(site, f, g))
    yield from still
    if still:
        return  # what a constant goes with says nothing
    chance = independence(f, g)
    if chance > _LEVEL:
        yield coded(
            "RB118",
            f"at {site.path}, {home_name(site.f.home)} and {home_name(site.g.home)} look linearly independent in "
            f"the {samples} samples of the example (permutation test, p = {chance:.2f}): there may be nothing to "
            "remove",
        )


def _still(site: PlannedSite, f: Tensor, g: Tensor) -> Iterator[str]:
    """A note for each side whose features [N, n] are all but the same for all samples."""
    for side, x, then in (
        ("f", site.f, "there is nothing in it to normalise"),
        (
            "g",
            site.g,
            "a fit on it is rounding: the projection becomes large (norm_W), and what it subtracts arbitrary",
        ),
    ):
        features = f if side == "f" else g
        size = float(features.norm())
        share = float((features - features.mean(0)).norm()) / size if 0 < size < float("inf") else 0.0
        if share < _STILL and size < float("inf"):
            yield coded(
                "RB121",
                f"at {site.path}, {side} ({home_name(x.home)}) hardly varies over the {len(features)} samples of the "
                f"example ({share:.1g} of its size; below {_STILL:g}): {then}",
            )


def independence(f: Tensor, g: Tensor) -> float:
    """p-value of a permutation test for linear dependence between f [N, n] and g [N, m].

    The statistic is the squared norm of their cross-covariance (HSIC with linear kernels, Gretton et al. 2005), on
    the Gram matrices, so that features may outnumber samples. Seeded: the same tensors give the same value.
    """
    grams = []
    for x in (f, g):
        centred = x - x.mean(0)
        grams.append(centred @ centred.T)
    first, second = grams
    observed = float((first * second).sum())
    generator = torch.Generator().manual_seed(0)
    as_large = 0
    for _ in range(_PERMUTATIONS):
        order = torch.randperm(len(first), generator=generator).to(first.device)
        as_large += float((first * second[order][:, order]).sum()) >= observed
    return (1 + as_large) / (1 + _PERMUTATIONS)
