"""Runs a rewritten model on batches, in evaluation, and collects what each RegBN is given and what it returns."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ._given_batches import run_on
from ._inputs import Inputs
from ._surgery._site import RegBNSite
from ._types import PlannedSite
from .nn import RegBN

Pair = tuple[Tensor, Tensor]
#: Arguments and keyword arguments of a call of RegBN.
Call = tuple[tuple[Any, ...], dict[str, Any]]


def collected(
    model: nn.Module,
    places: Mapping[str, RegBNSite],
    plans: Mapping[str, PlannedSite],
    batches: Sequence[Inputs],
    *,
    passing_through: bool = False,
    calls: Mapping[str, list[Call]] | None = None,
) -> tuple[dict[str, Pair], dict[str, Pair]]:
    """f and g at each site as `[samples, features]`: what gets to it, and what it returns (the same where it is made to
    pass them through). A site that is reached several times in one call counts once; `calls` takes all of its calls.
    """
    given: dict[str, list[Pair]] = {path: [] for path in places}
    returned: dict[str, list[Pair]] = {path: [] for path in places}
    seen: set[str] = set()

    def watch(path: str) -> Callable[..., Any]:
        pooled = plans[path].reduce == "mean"

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if calls is not None:
                calls[path].append((args, kwargs))
            if path not in seen:
                seen.add(path)
                masks = kwargs.get("f_mask"), kwargs.get("g_mask")
                for into, sides in ((given, args[:2]), (returned, output)):
                    if not (passing_through and into is returned):
                        f, g = (_features(x, mask, pooled) for x, mask in zip(sides, masks, strict=True))
                        into[path].append((f, g))
            return args[:2] if passing_through else None

        return hook

    with ExitStack() as stack:
        for path, site in places.items():
            stack.callback(site.regbn.register_forward_hook(watch(path), with_kwargs=True).remove)
        for number, inputs in enumerate(batches, 1):
            seen.clear()
            run_on(model, inputs, number)
    before = {path: _joined(pairs) for path, pairs in given.items() if pairs}
    return before, before if passing_through else {path: _joined(pairs) for path, pairs in returned.items() if pairs}


def _joined(pairs: Sequence[Pair]) -> Pair:
    return torch.cat([f for f, _ in pairs]), torch.cat([g for _, g in pairs])


def offset_of(g: Tensor) -> float:
    """`||mean||^2 / mean ||g||^2` of g [samples, features]."""
    whole = float(g.double().square().sum(1).mean())
    return float(g.double().mean(0).square().sum()) / whole if whole > 0 else 0.0


def running_to_batch(regbn: RegBN, calls: Sequence[Call]) -> float:
    """The size of what evaluation subtracts over that of what training does, over all calls; 1 where neither does."""
    probe = copy.deepcopy(regbn)
    sizes = {True: 0.0, False: 0.0}
    for training in (False, True):  # training moves the copy, which is no longer read then
        for args, kwargs in calls:
            residuals: list[Tensor] = []
            handle = probe.norm_f_out.register_forward_pre_hook(lambda _, given, into=residuals: into.append(given[0]))
            probe.train(training)(*args, **kwargs)
            handle.remove()
            sizes[training] += float((args[0] - residuals[0]).double().square().sum())
    return math.sqrt(sizes[False] / sizes[True]) if sizes[True] > 0 else 1.0


def finite(before: Pair | None, after: Pair | None) -> tuple[Pair | None, Pair | None, str]:
    """f and g before and after RegBN without the samples that hold NaN or infinite values, and what is to be told."""
    if before is None:
        return before, after, ""
    if len({len(x) for x in (*before, *(after or ()))}) > 1:
        return before, after, ""  # that they do not belong together is told where they are measured
    good = {name: x.flatten(1).isfinite().all(1) for name, x in zip("fg", before, strict=True)}
    if after is not None:
        good["RegBN's result"] = torch.stack([x.flatten(1).isfinite().all(1) for x in after]).all(0)
    keep = torch.stack(list(good.values())).all(0)
    if bool(keep.all()):
        return before, after, ""
    worst = " and ".join(name for name, fine in good.items() if not bool(fine.all()))
    left = int((~keep).sum())
    told = f"samples with NaN or infinite values are left out, {left} of {len(keep)} (in {worst})"
    return (before[0][keep], before[1][keep]), None if after is None else (after[0][keep], after[1][keep]), told


def _features(x: Tensor, mask: Tensor | None, pooled: bool) -> Tensor:
    """`[B, C, *positions]` as `[B, features]`: the mean over positions that count, or all of them."""
    if not pooled or x.dim() == 2:
        return x.flatten(1)
    if mask is None:
        return x.flatten(2).mean(-1)
    keep = mask.flatten(1).to(x.dtype)
    return (x.flatten(2) * keep[:, None]).sum(-1) / keep.sum(-1, keepdim=True).clamp_min(1)
