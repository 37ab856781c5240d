"""How dependent the branches at each site are on a user's own batches, before RegBN and after it.

Shows where RegBN has something to remove. The sites of rules tell which tensors to look at; without rules, those of a
first rules file for the model (`init`).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._adapter_copies import regbn_in
from ._api import RulesLike, operate
from ._codes import coded, kept, text_of
from ._diagnosis import MINIMUM, Dependence, dependence
from ._errors import InputsError
from ._given_batches import GivenBatches, read_batches
from ._inputs import InputsLike
from ._measuring import Call, Pair, collected, finite, offset_of, running_to_batch
from ._misfits import refusing_strange_names
from ._report.words import count_text
from ._rules import Rules
from ._state import preserved
from ._surgery import explain, refuse_second, rewritten_inside, the_rewritten
from ._surgery._site import RegBNSite, site_at
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
    """The dependence of f on g at one site. `after` is None where no rules were given for a model without RegBN."""

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
    as_it_is: bool = False  # the model carried RegBN, which was measured and not fitted

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

    A model that `regbnify` has rewritten (or a wrapper around one, see `verify`) is measured as it is, without rules:
    before and after each of its RegBN, with the running projection that it has. Nothing is fitted or changed.

    Args:
        count: how many batches to take.
        rules: as for `plan`.
        data: batches as the model takes them: a tensor or tuple (positional arguments), a dict (keyword arguments),
            or `Inputs`; or pairs of one of these and a target, which is left out.
        example: inputs to analyse the model with; without it the first batch of two or more samples.
        modalities: as for `inspect`; for use without rules. A rewritten model knows its own.
        seed: random seed of the cross-validation folds.
        steps: fit each RegBN for so many training steps, instead of until its running projection has settled, and say
            where they are too few.

    Raises:
        InputsError: for data that gives no batch, fewer than 8 samples in all, or, without `example`, only batches
            of one sample.
        AlreadyRewrittenError: for rules and a model that carries RegBN.
        RegBNError: as `regbnify` does.
    """
    if not _is_a_number(count):
        raise InputsError(
            f"count says how many batches of `data` to take, a whole number from 1; found {_short(count)}. An example "
            "to analyse the model with goes by its name: diagnose(model, data, example=batch)."
        )
    if rules is not None or modalities is not None:
        refuse_second(
            model, "Measure it as it is, without rules (`--rules`) and modalities: these are for a model without RegBN"
        )
    elif rewritten_inside(model):
        return _as_it_is(the_rewritten(model), itertools.islice(data, int(count)), seed)
    given = read_batches(model, itertools.islice(data, int(count)))
    batches = given.calls
    rules = None if rules is None else Rules.load(rules)
    rewritten = _rewritten(model, given, example, rules, modalities)
    places, plans = _sites(rewritten)
    calls: dict[str, list[Call]] | None = None if rules is None else {path: [] for path in places}
    rewritten.eval()
    with torch.no_grad():
        before, _ = collected(rewritten, places, plans, batches, passing_through=True, calls=calls)
        if calls is None:
            sites = [_Site(plan.point or path, path, plan, before.get(path)) for path, plan in plans.items()]
        else:
            fits = {path: _fit(places[path], calls[path], steps) for path in places}
            after = collected(rewritten, places, plans, batches)[1]
            sites = [
                _Site(path, path, plan, before.get(path), after.get(path), _regbn(places[path]), fits[path])
                for path, plan in plans.items()
            ]
    rows, notes, alarms = _measured(sites, len(batches), seed, steps)
    ignore = () if rules is None else rules.ignore
    return Diagnosis(type(model).__name__, len(batches), rows, kept(notes, ignore), kept(alarms, ignore))


def _as_it_is(model: nn.Module, data: Iterable[Any], seed: int) -> Diagnosis:
    """A rewritten model, measured before and after each RegBN in one and the same call; it is put back as it was."""
    batches = read_batches(model, data).calls
    places, plans = _sites(model)
    calls: dict[str, list[Call]] = {path: [] for path in places}
    with preserved(model), torch.no_grad():
        model.eval()
        for module in model.modules():
            module._compiled_call_impl = None  # compiled code calls no hooks that come later
        before, after = collected(model, places, plans, batches, calls=calls)
        sites = []
        for path, plan in plans.items():
            regbn = _regbn(places[path])
            usable = [] if regbn is None else _usable(calls[path])
            ratio = running_to_batch(regbn, usable) if regbn is not None and usable else None
            sites.append(_Site(path, path, plan, before.get(path), after.get(path), regbn, _Fit(ratio)))
    rows, notes, alarms = _measured(sites, len(batches), seed, None)
    untrained = [site for site in sites if site.regbn is not None and int(site.regbn.num_steps) == 0]
    notes += [
        coded("RB309", f"`{site.name}` has seen no training step: its running projection is 0 and subtracts nothing")
        for site in untrained
    ]
    return Diagnosis(type(model).__name__, len(batches), rows, tuple(notes), tuple(alarms), as_it_is=True)


def _is_a_number(count: Any) -> bool:
    """A whole number from 1, numpy's included."""
    try:
        return not isinstance(count, bool) and operator.index(count) > 0
    except TypeError:
        return False


def _short(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def _sites(rewritten: nn.Module) -> tuple[dict[str, RegBNSite], dict[str, PlannedSite]]:
    planned = {site.path: site for host in explain(rewritten) for site in host.sites}
    parts = {path: path.rpartition(".") for path in planned}
    return {path: site_at(rewritten.get_submodule(at), name) for path, (at, _, name) in parts.items()}, planned


def _regbn(site: RegBNSite) -> RegBN | None:
    """The RegBN that runs at a site; None where another module is in its place."""
    return regbn_in(site.regbn)


@dataclass(frozen=True)
class _Site:
    """What was seen at a site. `after` and `fit` are None where RegBN only passes f and g through."""

    name: str  # for people
    path: str
    planned: PlannedSite
    before: Pair | None
    after: Pair | None = None
    regbn: RegBN | None = None
    fit: _Fit | None = None


def _measured(
    sites: Sequence[_Site], batches: int, seed: int, steps: int | None
) -> tuple[tuple[Measured, ...], list[str], list[str]]:
    """A row for each site that saw enough, notes, and alarms."""
    rows: list[Measured] = []
    notes: list[str] = []
    alarms: list[str] = []
    for site in sites:
        name, fit, planned = site.name, site.fit, site.planned
        pair, fitted, strange = finite(site.before, site.after if fit is None or fit.usable else None)
        notes += [coded("RB308", f"`{name}`: {strange}")] if strange else []
        if pair is None or len(pair[0]) < MINIMUM:
            saw = f"saw {0 if pair is None else len(pair[0])} {'finite ' if strange else ''}samples"
            notes.append(coded("RB305", f"`{site.path}` {saw}; {MINIMUM} are needed"))
            continue
        first = dependence(*pair, seed=seed)
        then = None if fitted is None else dependence(*fitted, seed=seed)
        ratio = None if fit is None else fit.ratio
        rows.append(Measured(name, planned.point, planned.f.home, planned.g.home, first, then, ratio))
        if fit is not None and fit.left_out:
            notes.append(coded("RB307", f"`{name}`: {fit.words}"))
        if then is not None and ratio is not None and site.regbn is not None:
            options = site.regbn.options
            found = Evidence(name, options, first, then, offset_of(pair[1]), len(pair[0]) // batches, ratio)
            alarms += [told] if (told := risen(found)) else []
            notes += [*verdict(found), *_short_of_steps(name, options, steps)]
    if sites and not rows:
        seen = count_text(batches, "batch", "batches")
        raise InputsError(f"no site saw {MINIMUM} samples in {seen}: " + "; ".join(map(text_of, notes)))
    return tuple(rows), notes, alarms


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


def _usable(calls: Sequence[Call]) -> list[Call]:
    """Those of more than one sample: nothing can be fitted on one."""
    return [(args, kwargs) for args, kwargs in calls if args[0].shape[0] > 1]


def _fit(site: RegBNSite, calls: Sequence[Call], steps: int | None) -> _Fit:
    """Let RegBN see its inputs again and again, as training would, for `steps` or until it has settled.

    Batches of one sample are left out.
    """
    usable = _usable(calls)
    site.train()
    wanted = max(STEPS, len(usable)) if steps is None else steps
    for args, kwargs in itertools.islice(itertools.cycle(usable), wanted):
        site.regbn(*args, **kwargs)
    site.eval()
    ratio = running_to_batch(site.regbn, usable) if usable else None
    return _Fit(ratio, len(calls) - len(usable), len(calls))


@dataclass(frozen=True)
class _Fit:
    """How a RegBN was fitted. `ratio`: the size of what its running projection subtracts over that of what each
    batch's own does; None where it has seen no batch of two samples."""

    ratio: float | None
    left_out: int = 0  # calls of one sample
    calls: int = 0  # 0 where nothing was to be fitted

    @property
    def usable(self) -> bool:
        """Whether what RegBN returns says something: it is fitted, or was before."""
        return self.ratio is not None or self.calls == 0

    @property
    def words(self) -> str:
        if self.ratio is None:
            return "every batch has one sample, and a fit needs at least 2 in a batch: not measured after RegBN"
        return f"the fit leaves out batches of one sample ({self.left_out} of {self.calls}); it needs at least 2"
