"""How dependent the branches at each site are on a user's own batches, before RegBN and after it.

Shows where RegBN has something to remove. The sites of rules tell which tensors to look at; without rules, those of a
first rules file for the model (`init`).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._api import RulesLike, operate
from ._codes import coded, kept, text_of
from ._diagnosis import MINIMUM, Dependence, dependence
from ._errors import InputsError
from ._given_batches import GivenBatches, read_batches, run_on
from ._inputs import Inputs, InputsLike
from ._misfits import refusing_strange_names
from ._report.words import count_text
from ._rules import Rules
from ._surgery import explain
from ._surgery._site import RegBNSite
from ._types import PlannedSite
from ._undo import guarding
from ._verdict import Evidence, risen, verdict
from .nn import RegBN
from .nn.options import RegBNOptions
from .nn.start import too_few

#: Steps after which a projection that follows the batches' own with momentum 0.02 has all but arrived.
STEPS = 300


@dataclass(frozen=True)
class Measured:
    """The dependence of f on g at one site. `after` is None where no rules were given."""

    site: str  # path of the RegBN module, or the id of the fusion point where none would stay
    point: str | None
    f: tuple[str, ...]  # home of f
    g: tuple[str, ...]
    before: Dependence
    after: Dependence | None
    running_to_batch: float | None = None  # what the running projection subtracts over what a batch's own does


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. Sentences for people: `alarms`, where RegBN put dependence in, and `notes`."""

    model: str
    batches: int
    rows: tuple[Measured, ...]
    notes: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The content as plain JSON types."""
        from ._report.dependence import dependence_to_dict

        return dependence_to_dict(self)

    def __str__(self) -> str:
        from ._report.dependence import dependence_view
        from ._report.text import plain

        return plain(dependence_view(self))


@refusing_strange_names
@guarding
def diagnose(
    model: nn.Module,
    data: Iterable[Any],
    count: int = 8,
    rules: RulesLike | None = None,
    example: InputsLike | None = None,
    modalities: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    steps: int | None = None,
) -> Diagnosis:
    """Run `model` on `count` batches of `data` and measure the dependence of f on g at each site.

    The model runs in evaluation mode, as it is. With `rules`, each RegBN is then fitted on the same batches, in
    training mode, while everything around it stays in evaluation, and measured on them again. Batches of one sample
    are measured, and left out of the fit (note RB307).

    Args:
        count: how many batches to take.
        rules: as for `plan`.
        data: batches as the model takes them: a tensor or tuple (positional arguments), a dict (keyword arguments),
            or `Inputs`; or pairs of one of these and a target, which is left out.
        example: inputs to analyse the model with; without it the first batch of two or more samples.
        modalities: as for `inspect`; for use without rules.
        seed: random seed of the cross-validation folds.
        steps: fit each RegBN for so many training steps, instead of until its running projection has settled, and say
            where they are too few.

    Raises:
        InputsError: for data that gives no batch, fewer than 8 samples in all, or, without `example`, only batches
            of one sample.
        RegBNError: as `regbnify` does.
    """
    given = read_batches(model, itertools.islice(data, count))
    batches = given.calls
    rules = None if rules is None else Rules.load(rules)
    rewritten = _rewritten(model, given, example, rules, modalities)
    sites = {site.path: site for host in explain(rewritten) for site in host.sites}
    places = {path: module for path, module in rewritten.named_modules() if isinstance(module, RegBNSite)}
    plans = {path: sites[path] for path in places}
    rewritten.eval()
    with torch.no_grad():
        before = _collected(rewritten, places, plans, batches, passing_through=True)
        after, fits = {}, {}
        if rules is not None:
            fits = _fit(rewritten, places, batches, steps)
            after = _collected(rewritten, places, plans, batches, passing_through=False)
    rows: list[Measured] = []
    alarms: list[str] = []
    notes: list[str] = []
    for path, planned in plans.items():
        name = path if rules is not None else planned.point or path
        fit = fits.get(path)
        fitted = after.get(path) if fit is not None and fit.ratio is not None else None
        pair, fitted, strange = _finite(before.get(path), fitted)
        notes += [coded("RB308", f"`{name}`: {strange}")] if strange else []
        if pair is None or len(pair[0]) < MINIMUM:
            saw = f"saw {0 if pair is None else len(pair[0])} {'finite ' if strange else ''}samples"
            notes.append(coded("RB305", f"`{path}` {saw}; {MINIMUM} are needed"))
            continue
        first = dependence(*pair, seed=seed)
        then = None if fitted is None else dependence(*fitted, seed=seed)
        ratio = None if fit is None else fit.ratio
        rows.append(Measured(name, planned.point, planned.f.home, planned.g.home, first, then, ratio))
        if fit is not None and fit.left_out:
            notes.append(coded("RB307", f"`{name}`: {fit.words}"))
        if then is not None and ratio is not None:
            options = places[path].regbn.options
            found = Evidence(name, options, first, then, _offset(pair[1]), len(pair[0]) // len(batches), ratio)
            alarms += [told] if (told := risen(found)) else []
            notes += [*verdict(found), *_short_of_steps(name, options, steps)]
    if plans and not rows:
        seen = count_text(len(batches), "batch", "batches")
        raise InputsError(f"no site saw {MINIMUM} samples in {seen}: " + "; ".join(map(text_of, notes)))
    ignore = () if rules is None else rules.ignore
    return Diagnosis(type(model).__name__, len(batches), tuple(rows), kept(notes, ignore), kept(alarms, ignore))


def _short_of_steps(name: str, options: RegBNOptions, steps: int | None) -> list[str]:
    """A note where the running projection cannot arrive in the announced steps."""
    short = None if steps is None or options.correct_start else too_few(steps, options.momentum)
    return [coded("RB306", f"`{name}`: {short}")] if short else []


def _rewritten(
    model: nn.Module,
    given: GivenBatches,
    example: InputsLike | None,
    rules: Rules | None,
    modalities: Mapping[str, Any] | None,
) -> nn.Module:
    """A copy of the model with RegBN at each site. Raises InputsError that says how many samples are needed."""
    known = given.example if example is None else example
    try:
        return operate(model, rules or _first_rules(model, known, modalities), known)[2]
    except InputsError as error:
        if example is None and given.single:
            raise InputsError(given.too_small(str(error))) from error
        raise


def _first_rules(model: nn.Module, example: InputsLike, modalities: Mapping[str, Any] | None) -> Rules:
    from ._starter import starter_rules

    return Rules.from_text(starter_rules(model, example, modalities), "the rules that `init` writes")


def _offset(g: Tensor) -> float:
    """`||mean||^2 / mean ||g||^2` of g [samples, features]."""
    whole = float(g.double().square().sum(1).mean())
    return float(g.double().mean(0).square().sum()) / whole if whole > 0 else 0.0


def _fit(
    model: nn.Module, places: Mapping[str, RegBNSite], batches: Sequence[Inputs], steps: int | None
) -> dict[str, _Fit]:
    """Let each RegBN see its inputs again and again, as training would, for `steps` or until it has settled.

    Batches of one sample are left out: nothing can be fitted on them.
    """
    calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {path: [] for path in places}

    def keep(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            calls[path].append((args, kwargs))
            return args[:2]

        return hook

    with ExitStack() as stack:
        for path, site in places.items():
            stack.callback(site.regbn.register_forward_hook(keep(path), with_kwargs=True).remove)
        for number, inputs in enumerate(batches):
            run_on(model, inputs, number)
    fits: dict[str, _Fit] = {}
    for path, site in places.items():
        usable = [(args, kwargs) for args, kwargs in calls[path] if args[0].shape[0] > 1]
        site.train()
        wanted = max(STEPS, len(usable)) if steps is None else steps
        for args, kwargs in itertools.islice(itertools.cycle(usable), wanted):
            site.regbn(*args, **kwargs)
        site.eval()
        ratio = _running_to_batch(site.regbn, usable) if usable else None
        fits[path] = _Fit(ratio, len(calls[path]) - len(usable), len(calls[path]))
    return fits


def _running_to_batch(regbn: RegBN, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> float:
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


@dataclass(frozen=True)
class _Fit:
    """How a RegBN was fitted. `ratio`: the size of what its running projection subtracts over that of what each
    batch's own does; None where it has seen no batch of two samples, and is not fitted."""

    ratio: float | None
    left_out: int  # calls of one sample
    calls: int

    @property
    def words(self) -> str:
        if self.ratio is None:
            return "every batch has one sample, and a fit needs at least 2 in a batch: not measured after RegBN"
        return f"the fit leaves out batches of one sample ({self.left_out} of {self.calls}); it needs at least 2"


Pair = tuple[Tensor, Tensor]


def _collected(
    model: nn.Module,
    places: Mapping[str, RegBNSite],
    plans: Mapping[str, PlannedSite],
    batches: Sequence[Inputs],
    *,
    passing_through: bool,
) -> dict[str, Pair]:
    """f and g at each site as `[samples, features]`: what gets to it where it passes them through, else what it gives.

    A site that is reached several times in one call counts once.
    """
    found: dict[str, list[Pair]] = {path: [] for path in places}
    seen: set[str] = set()

    def watch(path: str) -> Callable[..., Any]:
        pooled = plans[path].reduce == "mean"

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            f, g = args[:2] if passing_through else output
            if path not in seen:
                seen.add(path)
                masks = kwargs.get("f_mask"), kwargs.get("g_mask")
                found[path].append((_features(f, masks[0], pooled), _features(g, masks[1], pooled)))
            return args[:2] if passing_through else None

        return hook

    with ExitStack() as stack:
        for path, site in places.items():
            stack.callback(site.regbn.register_forward_hook(watch(path), with_kwargs=True).remove)
        for number, inputs in enumerate(batches):
            seen.clear()
            run_on(model, inputs, number)
    return {
        path: (torch.cat([f for f, _ in pairs]), torch.cat([g for _, g in pairs]))
        for path, pairs in found.items()
        if pairs
    }


def _finite(before: Pair | None, after: Pair | None) -> tuple[Pair | None, Pair | None, str]:
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
