"""Apply a plan to a model, hold the result to the original, and take it back if it does not stand.

The only place that changes a module. Ways are tried in order: hooks on the arguments where the owner receives both
branches, else the owner's own code with some calls wrapped, else its own code under a function mode; whatever is kept
has passed the self-check at every batch size in both modes, with identity in place of RegBN.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

from .._analysis import MODEL_ERRORS, Analysis, Observed
from .._errors import AlreadyRewrittenError, RegBNError, RewriteError
from .._types import Plan, PlannedSite
from ._adapters import watch_adapters, watch_adapters_no_more
from ._classes import original_class, uninstall
from ._compare import difference_of_values
from ._graph_host import GraphHost
from ._guard import ATTRIBUTE, MODALITIES, Guard
from ._guard import RECORD as RECORD
from ._hoist import HoistHook
from ._host import HostSurgery
from ._keep import forget, settle
from ._operations import Operation, name_in_host, operations_for, put_in
from ._roles import RoleReset
from ._saving import save_recipe_no_more, save_recipe_too
from ._site import RegBNSite, sites_of
from ._trials import check, observe
from ._verify import refuse_other_streams

#: What to do with a model that carries RegBN already, where one without is wanted; where rules are put in, more of it.
WITHOUT = "It is analysed without it: use the model as it was, or unregbnify(model)"
SEVERAL_RULES = f"{WITHOUT}. Several rules go into one file"


@dataclass(frozen=True)
class HostReport:
    """What the surgery did to one host.

    `way` is "hook" (a pre-hook on its arguments), "source" (its own code with some calls wrapped), "mode" (its own code
    under a function mode; `reason` says why) or "graph" (calls in another order). `before` and `after` are the code of
    its functions, `unhooked` says why a hook would not do although its arguments are the two sides.
    """

    host: str
    host_class: str
    tier: int
    sites: tuple[PlannedSite, ...]
    before: str = ""
    after: str = ""
    reason: str = ""
    unhooked: str = ""
    way: str = "hook"
    files: tuple[tuple[str, str, str, int], ...] = ()  # of "source": file, text before and after, number of first line
    slots: tuple[tuple[int, str, str], ...] = ()  # what the numbers in `after` are for: (number, RegBN, "f", "g", ...)


def perform(model: nn.Module, plan: Plan, analysis: Analysis) -> None:
    """Put the plan's RegBN modules into `model`, in place.

    Raises:
        AlreadyRewrittenError: where the model carries RegBN already.
        RewriteError: where no way reproduces the model; it is then as it was before.
    """
    refuse_second(model, SEVERAL_RULES)
    if not plan.sites:
        return
    _refuse_meta(model)
    with contextlib.suppress(RegBNError, *MODEL_ERRORS):  # what is wrong is told below, with all the ways
        _done_at_once(model, plan, analysis)
        return
    known = [observe(model, seen.inputs, seen.training, analysis.writes_parameters) for seen in analysis.observed]
    problems: list[str] = []
    hooked: list[Operation] = []
    for hooks in (True, False):
        try:
            operations = operations_for(model, plan, analysis, hooks)
            if not hooks and not any(op.tier == 1 for op in hooked):
                break
            hooked = hooked or operations
            _tried(model, operations, known, analysis)
        except (RegBNError, *MODEL_ERRORS) as error:
            problems.append(f"{'' if isinstance(error, RegBNError) else type(error).__name__ + ': '}{error}")
            continue
        _keep(
            model,
            [
                replace(op, unhooked=problems[0]) if (old.tier, op.tier) == (1, 2) and problems else op
                for op, old in zip(operations, hooked, strict=True)
            ],
        )
        return
    raise RewriteError(
        f"RegBN could not be inserted into {type(model).__name__} without changing what it computes; the model was "
        "left unchanged. " + " | ".join(dict.fromkeys(problems))
    )


def _done_at_once(model: nn.Module, plan: Plan, analysis: Analysis) -> None:
    """The preferred way for each host, held to what the analysis has seen the model give, which saves running it again.

    What it gave while it was recorded is what it gives to its user only if calls that nobody records agree: those of
    hooks and rewritten code do, those under a mode are recorded themselves.

    Raises:
        RewriteError: where the model does not stand that, or a host goes by mode; it is then as it was.
    """
    operations = operations_for(model, plan, analysis, hooks=True)
    with undone_on_error(model):
        put_in(model, operations, analysis.writes_parameters)
        surgeries = [module.__dict__.get(ATTRIBUTE) for module in model.modules()]
        if any(surgery.by_mode for surgery in surgeries if isinstance(surgery, HostSurgery)):
            raise RewriteError("a host under a mode is held to a run without one")
        _checked(model, operations, analysis.observed, analysis)
        _keep(model, operations)


def _keep(model: nn.Module, operations: Sequence[Operation]) -> None:
    """Note what was done, for recipes and reports."""
    paths = {id(module): path for path, module in model.named_modules()}
    model.__dict__[RECORD] = tuple(_as_done(model, op, paths) for op in operations)
    save_recipe_too(model)
    watch_adapters(model)


def _tried(model: nn.Module, operations: list[Operation], expected: Sequence[Observed], analysis: Analysis) -> None:
    """Put the sites in and hold the model to the original; where hosts do not stand it rewritten, under a mode.

    Raises:
        RewriteError: where it does not stand that, either; the model is then as it was before.
    """
    writes = analysis.writes_parameters
    try:
        with undone_on_error(model):
            put_in(model, operations, writes)
            _checked(model, operations, expected, analysis)
        return
    except (RewriteError, *MODEL_ERRORS) as error:
        if all(op.code is None for op in operations):
            raise
        reason = str(error)
    with undone_on_error(model):
        put_in(model, operations, writes, by_mode=f"after the rewrite it did not compute the same: {reason}")
        try:
            _checked(model, operations, expected, analysis)
        except (RewriteError, *MODEL_ERRORS) as error:
            raise RewriteError(f"{reason} | under a function mode: {error}") from error


def _checked(model: nn.Module, operations: list[Operation], expected: Sequence[Observed], analysis: Analysis) -> None:
    """Both parts of the self-check: the values, and which streams come to each RegBN."""
    writes, batches = analysis.writes_parameters, analysis.batches
    seen_below = [run for run in expected if not run.training and run.inputs is batches.large]
    reached = check(model, [run for run in expected if run not in seen_below], writes)
    model.__dict__[RECORD] = tuple(operations)
    model.__dict__[MODALITIES] = analysis.inspection.modalities
    given, ran = refuse_other_streams(model, batches, training=False, writes=writes)
    if analysis.trains_otherwise:
        ran |= refuse_other_streams(model, batches, training=True, writes=writes)[1]
    for wanted in seen_below:
        found = next((run for run in given if run.inputs is wanted.inputs), None)
        if found is None or difference_of_values(wanted.values, found.values) is not None:
            reached |= check(model, [wanted], writes)  # it may be the recording that makes the difference
    idle = [name for name, module in model.named_modules() if isinstance(module, RegBNSite)]
    idle = [name for name in idle if model.get_submodule(name) not in reached | ran]
    if idle:
        raise RewriteError(f"self-check failed: RegBN would never run at {', '.join(idle)}")
    for site, device in (reached | ran).items():
        settle(site, device)


def _as_done(model: nn.Module, operation: Operation, paths: Mapping[int, str]) -> Operation:
    """The operation with its site as the host has it now, and where its RegBN is."""
    host = model.get_submodule(operation.host)
    operation = replace(operation, planned=_where_it_is(operation, host, paths))
    surgery = host.__dict__.get(ATTRIBUTE)
    if operation.code is None or not isinstance(surgery, HostSurgery):
        return operation
    site = next(site for site in surgery.sites if site.name == operation.code.name)
    places = site.places()
    names = {step.function for place in places for step in place.steps}
    return replace(operation, code=site, texts=tuple(text for text in operation.texts if text.name in names))


def repeat(
    model: nn.Module,
    operations: Sequence[Operation],
    writes_parameters: bool,
    by_mode: Mapping[str, str],
    *,
    empty: bool = False,
) -> None:
    """Put the same sites into another instance of the model, in place and without running it.

    `by_mode` names the hosts whose forward has to run under a mode, with the reason. `empty` allows parameters on the
    meta device, which the caller fills.

    Raises:
        AlreadyRewrittenError: where the model carries RegBN already.
        RewriteError: where a site does not fit; the model is then as it was before.
    """
    refuse_second(model)
    if not empty:
        _refuse_meta(model)
    with undone_on_error(model):
        put_in(model, operations, writes_parameters, by_mode)
    model.__dict__[RECORD] = tuple(operations)
    save_recipe_too(model)
    watch_adapters(model)


def refuse_second(model: nn.Module, instead: str = WITHOUT) -> None:
    """Raises AlreadyRewrittenError where `model` already carries RegBN; `instead` says what can be done."""
    if RECORD in model.__dict__ or sites_of(model):
        names = ", ".join(sorted(name for name, module in model.named_modules() if isinstance(module, RegBNSite)))
        raise AlreadyRewrittenError(f"{type(model).__name__} already contains RegBN ({names}). {instead}.")


def _refuse_meta(model: nn.Module) -> None:
    meta = next((name for name, p in model.named_parameters() if p.is_meta), None)
    if meta is not None:
        raise RewriteError(
            f"{type(model).__name__} has parameters on the meta device (`{meta}`): the rewrite could not be checked. "
            "Load the weights first, or call load_regbn with a folder written by save_regbn; inspect and plan work "
            "without them."
        )


def undo(model: nn.Module) -> None:
    """Give back the very model: classes, hooks, keys."""
    watch_adapters_no_more(model)
    save_recipe_no_more(model)
    for module in list(model.modules()):
        uninstall(module)
        for registry, with_kwargs in ((module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),):
            for key, hook in list(registry.items()):
                if isinstance(hook, HoistHook | RoleReset | Guard):
                    del registry[key]
                    with_kwargs.pop(key, None)
        forget(module)
    model.__dict__.pop(RECORD, None)
    model.__dict__.pop(MODALITIES, None)


def explain(model: nn.Module) -> tuple[HostReport, ...]:
    """What the surgery did to each host of a rewritten model."""
    operations: tuple[Operation, ...] = model.__dict__.get(RECORD, ())
    reports = []
    paths = {id(module): path for path, module in model.named_modules()}
    for host, tier in dict.fromkeys((op.host, op.tier) for op in operations):
        module = model.get_submodule(host)
        members = [op for op in operations if (op.host, op.tier) == (host, tier)]
        sites = tuple(_where_it_is(op, module, paths) for op in members)
        report = HostReport(host, original_class(module).__name__, tier, sites)
        surgery = module.__dict__.get(ATTRIBUTE)
        if tier == 2 and isinstance(surgery, GraphHost):
            before, after = _code(surgery)
            report = replace(report, way="graph", before=before, after=after)
        elif tier == 2 and isinstance(surgery, HostSurgery):
            names = {name_in_host(op): site.path for op, site in zip(members, sites, strict=True) if op.keeper}
            report = _code_report(report, module, surgery)
            report = replace(report, slots=tuple((n, names.get(name, name), how) for n, name, how in report.slots))
        unhooked = next((op.unhooked for op in operations if op.host == host and op.unhooked), "")
        reports.append(replace(report, unhooked=unhooked))
    return tuple(reports)


def _where_it_is(operation: Operation, host: nn.Module, paths: Mapping[int, str]) -> PlannedSite:
    """The planned site with the path that its RegBN has in this very model."""
    planned = operation.planned
    path = paths.get(id(getattr(host, name_in_host(operation), None)), planned.path)
    return replace(planned, kept_at="" if path == replace(planned, kept_at="").path else path)


def _code_report(report: HostReport, module: nn.Module, surgery: HostSurgery) -> HostReport:
    if not surgery.tables:
        surgery.bind(module)
    if surgery.woven is None:
        return replace(report, tier=3, way="mode", reason=surgery.by_mode)
    files = surgery.woven.texts
    before, after = "\n".join(text[1] for text in files), "\n".join(text[2] for text in files)
    return replace(report, way="source", files=files, before=before, after=after, slots=surgery.woven.slots)


def _code(surgery: GraphHost) -> tuple[str, str]:
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
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """Take the surgery back where anything inside fails, an interrupt included."""
    try:
        yield
    except BaseException:
        undo(model)
        raise
