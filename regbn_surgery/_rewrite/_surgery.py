"""Apply a plan to a model, hold the result to the original, and take it back if it does not stand.

The only place that changes a module. Tiers are tried in order: hooks on the arguments where the owner receives both
branches, else a generated forward of the owner, else its own forward with RegBN let in between; whatever is kept has
passed the self-check at every batch size in both modes, with identity in place of RegBN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

from .._analyse import MODEL_ERRORS, Analysis
from .._errors import AlreadyRewrittenError, RegBNError, RewriteError
from .._types import Plan, PlannedSite
from ._classes import original_class, uninstall
from ._guard import ATTRIBUTE, Guard
from ._guard import RECORD as RECORD
from ._hoist import HoistHook
from ._host import HostSurgery
from ._keep import forget
from ._operations import Operation, operations_for, put_in
from ._roles import RoleReset
from ._site import RegBNSite, sites_of
from ._trials import capture_hosts, check, run


@dataclass(frozen=True)
class HostReport:
    """What the surgery did to one host.

    `before` and `after` are its captured code; empty where a hook did it (tier 1) or its own forward runs (tier 3).
    `reason` says why a tier 3 host could not be generated, `unhooked` why a host in tier 2 or 3 is not in tier 1
    although its arguments are the two sides; empty where nothing better was there to try.
    """

    host: str
    host_class: str
    tier: int
    sites: tuple[PlannedSite, ...]
    before: str = ""
    after: str = ""
    reason: str = ""
    unhooked: str = ""


def perform(model: nn.Module, plan: Plan, analysis: Analysis) -> None:
    """Put the plan's RegBN modules into `model`, in place.

    Raises:
        AlreadyRewrittenError: where the model carries RegBN already.
        RewriteError: where no tier reproduces the model; it is then as it was before.
    """
    refuse_second(model)
    if not plan.sites:
        return
    _refuse_meta(model)
    runs = [(inputs, training) for training in (False, True) for inputs in analysis.batches.each()]
    writes = analysis.writes_parameters
    expected = [run(model, inputs, training, writes) for inputs, training in runs]
    problems: list[str] = []
    for hoisting in (True, False):
        operations = operations_for(plan, analysis, hoisting)
        if not hoisting and all(op.tier == 2 or op.recipe is None for op in operations) and not problems:
            break
        try:
            with _undone_on_error(model):
                put_in(model, operations, writes)
                capture_hosts(model, runs, writes)
                check(model, runs, expected, writes)
        except (RegBNError, *MODEL_ERRORS) as error:
            problems.append(f"{'' if isinstance(error, RegBNError) else type(error).__name__ + ': '}{error}")
            if all(op.tier == 2 for op in operations):
                break
            continue
        tried = operations_for(plan, analysis, hoisting=True) if problems else operations
        model.__dict__[RECORD] = tuple(
            replace(op, unhooked=problems[0]) if (old.tier, op.tier) == (1, 2) else op
            for op, old in zip(operations, tried, strict=True)
        )
        return
    raise RewriteError(
        f"RegBN could not be put into {type(model).__name__} without changing what it computes; it is as it was. "
        + " | ".join(problems)
    )


def operations_of(model: nn.Module) -> tuple[Operation, ...]:
    """What `perform` has put into `model`, as plain data; empty where it carries no RegBN."""
    found: tuple[Operation, ...] = model.__dict__.get(RECORD, ())
    return found


def repeat(
    model: nn.Module, operations: Sequence[Operation], writes_parameters: bool, interposing: Mapping[str, str]
) -> None:
    """Put the same sites into another instance of the model, in place and without running it.

    Hooks need nothing but the names of arguments; a generated host captures, and checks, each kind of call when it
    comes. `interposing` names the hosts that have to run as they are (tier 3), with the reason.

    Raises:
        AlreadyRewrittenError: where the model carries RegBN already.
        RewriteError: where a site does not fit; the model is then as it was before.
    """
    refuse_second(model)
    _refuse_meta(model)
    with _undone_on_error(model):
        put_in(model, operations, writes_parameters)
        for path, reason in interposing.items():
            model.get_submodule(path).__dict__[ATTRIBUTE].interposing = reason
    model.__dict__[RECORD] = tuple(operations)


def refuse_second(model: nn.Module) -> None:
    """Raises AlreadyRewrittenError where `model` already carries RegBN."""
    if RECORD in model.__dict__ or sites_of(model):
        names = ", ".join(sorted(name for name, module in model.named_modules() if isinstance(module, RegBNSite)))
        raise AlreadyRewrittenError(
            f"{type(model).__name__} already carries RegBN ({names}). "
            "Call unregbnify first, or put all rules in one file."
        )


def _refuse_meta(model: nn.Module) -> None:
    meta = next((name for name, p in model.named_parameters() if p.is_meta), None)
    if meta is not None:
        raise RewriteError(
            f"{type(model).__name__} has parameters on the meta device (`{meta}`): the rewrite could not be checked. "
            "Load the weights first; inspect and plan work without them."
        )


def undo(model: nn.Module) -> None:
    """Give back the very model: classes, hooks, keys."""
    for module in list(model.modules()):
        uninstall(module)
        for registry, with_kwargs in ((module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),):
            for key, hook in list(registry.items()):
                if isinstance(hook, HoistHook | RoleReset | Guard):
                    del registry[key]
                    with_kwargs.pop(key, None)
        forget(module)
    model.__dict__.pop(RECORD, None)


def explain(model: nn.Module) -> tuple[HostReport, ...]:
    """What the surgery did to each host of a rewritten model."""
    operations: tuple[Operation, ...] = model.__dict__.get(RECORD, ())
    reports = []
    for host, tier in dict.fromkeys((op.host, op.tier) for op in operations):
        module = model.get_submodule(host)
        sites = tuple(op.planned for op in operations if (op.host, op.tier) == (host, tier))
        before = after = reason = ""
        if tier == 2:
            surgery: HostSurgery = module.__dict__[ATTRIBUTE]
            before, after = _code(surgery)
            reason = surgery.interposing
        level = 3 if reason else tier
        unhooked = next((op.unhooked for op in operations if op.host == host and op.unhooked), "")
        reports.append(HostReport(host, original_class(module).__name__, level, sites, before, after, reason, unhooked))
    return tuple(reports)


def _code(surgery: HostSurgery) -> tuple[str, str]:
    """The captured and the rewritten code of a host; one text where evaluation and training do not differ."""
    texts: dict[bool, tuple[dict[str, None], dict[str, None]]] = {False: ({}, {}), True: ({}, {})}
    for key, many in surgery.variants.items():
        training = bool(key[1])
        for known in many:
            if known.variant.sites:
                texts[training][0].setdefault(known.variant.before)
                texts[training][1].setdefault(known.variant.after)
    evaluation, train = (tuple("\n".join(column) for column in texts[mode]) for mode in (False, True))
    if evaluation == train or not train[1]:
        return evaluation[0], evaluation[1]
    if not evaluation[1]:
        return train[0], train[1]
    before, after = (f"# in evaluation\n{a}\n# in training\n{b}" for a, b in zip(evaluation, train, strict=True))
    return before, after


@contextmanager
def _undone_on_error(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except BaseException:
        undo(model)
        raise
