"""Apply a plan to a model, hold the result to the original, and take it back if it does not stand.

The only place that changes a module. Tiers are tried in order: hooks on the arguments where the owner receives both
branches, else a generated forward of the owner, else its own forward with RegBN let in between; whatever is kept has
passed the self-check at every batch size in both modes, with identity in place of RegBN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from .._analyse import MODEL_ERRORS, Analysis, Recipe
from .._errors import AlreadyRewrittenError, RegBNError, RewriteError
from .._inputs import Inputs
from .._state import preserved, seeded
from .._types import Plan, PlannedSite
from ._calls import own_arguments
from ._compare import difference
from ._guard import ATTRIBUTE, Guard, on_the_stack
from ._guard import RECORD as RECORD
from ._hoist import HoistHook, HoistSpec, positions_of
from ._host import HostSurgery, install, original_class, original_forward, uninstall
from ._keep import forget, keep
from ._local import LocalSite
from ._opened import refuse_hooks
from ._reorder import without_dropout
from ._roles import NO_ROLE, RoleReset, Roles
from ._scatter import PositionSite
from ._site import RegBNSite, identity, sites_of


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


@dataclass(frozen=True)
class Operation:
    """One planned site with the tier chosen for it and the host in which its module is registered."""

    planned: PlannedSite
    recipe: Recipe | None  # None at a pair of inputs
    tier: int
    host: str
    unhooked: str = ""  # why a hook on the host's arguments would not do


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
    expected = [_run(model, inputs, training, writes) for inputs, training in runs]
    problems: list[str] = []
    for hoisting in (True, False):
        operations = _operations(plan, analysis, hoisting)
        if not hoisting and all(op.tier == 2 or op.recipe is None for op in operations) and not problems:
            break
        try:
            with _undone_on_error(model):
                _install(model, operations, writes)
                _capture_hosts(model, runs, writes)
                _check(model, runs, expected, writes)
        except (RegBNError, *MODEL_ERRORS) as error:
            problems.append(f"{'' if isinstance(error, RegBNError) else type(error).__name__ + ': '}{error}")
            if all(op.tier == 2 for op in operations):
                break
            continue
        tried = _operations(plan, analysis, hoisting=True) if problems else operations
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
        _install(model, operations, writes_parameters)
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


# -- how each site goes in --------------------------------------------------------------------------------------------


def _operations(plan: Plan, analysis: Analysis, hoisting: bool) -> list[Operation]:
    """The plan's sites with their tiers. Pairs at one call go in sequence, so that all of them are hoisted or none."""
    operations = [_operation(planned, analysis, hoisting) for planned in plan.sites]
    generated = {op.planned.point for op in operations if op.tier == 2 and op.planned.point is not None}
    return [
        op if op.planned.point not in generated else _operation(op.planned, analysis, hoisting=False)
        for op in operations
    ]


def _operation(planned: PlannedSite, analysis: Analysis, hoisting: bool) -> Operation:
    if planned.pair is not None:
        pair = analysis.pair(*planned.pair)
        return Operation(planned, pair.recipe, 1 if pair.recipe is None else 2, pair.host)
    assert planned.site is not None, "a planned site is at a point or at a pair"
    point = next(p for p in analysis.inspection.fusion_points if p.id == planned.point)
    recipe = analysis.recipes[(point.id, point.sites.index(planned.site))]
    if hoisting and recipe.leaf is not None:
        return Operation(planned, recipe, 1, recipe.leaf)
    if hoisting and _is_hoistable(recipe, point.kind, planned):
        return Operation(planned, recipe, 1, recipe.owner)
    return Operation(planned, recipe, 2, recipe.owner)


def _is_hoistable(recipe: Recipe, kind: str, planned: PlannedSite) -> bool:
    """Whether replacing the owner's arguments replaces what the site means, and nothing else."""
    if recipe.repeats or any(take.argument is None for take in recipe.takes):
        return False
    if kind == "attention":  # its site is the owner's inputs, whatever else the owner does with them
        return True
    f, g = _orient(recipe, planned)
    replaced = (f, g) if _replaces_g(planned) else (f,)
    return all(recipe.whole_input[i] for i in replaced)


def _orient(recipe: Recipe, planned: PlannedSite) -> tuple[int, int]:
    """Which side of the recipe is f and which is g."""
    if planned.site is None:
        return 0, 1
    f = 0 if planned.site.sides[0] == planned.f else 1
    return f, 1 - f


def _replaces_g(planned: PlannedSite) -> bool:
    return planned.replace == "both" and (planned.site is None or planned.site.gate is None)


def _install(model: nn.Module, operations: Sequence[Operation], writes_parameters: bool) -> None:
    by_host: dict[tuple[str, int], list[Operation]] = {}
    for operation in operations:
        by_host.setdefault((operation.host, operation.tier), []).append(operation)
    for (path, tier), members in by_host.items():
        host = model.get_submodule(path)
        for operation in members:
            keep(model, path, operation.planned.name, _site_module(operation.planned, operation.recipe))
        roles = _roles(model, members)
        if tier == 1:
            specs = tuple(_spec(operation) for operation in members)
            hook = HoistHook(specs, positions_of(host), roles, path)
            host.register_forward_pre_hook(hook, with_kwargs=True)
        else:
            sites = tuple(_local(operation) for operation in members)
            surgery = HostSurgery(path, sites, roles, writes_parameters)
            install(host, surgery)
            _guard(host, surgery)
    for module in model.modules():
        if ATTRIBUTE in module.__dict__:
            refuse_hooks(module, module.__dict__[ATTRIBUTE].opened)


def _site_module(planned: PlannedSite, recipe: Recipe | None) -> RegBNSite:
    if recipe is None or recipe.scatter is None or recipe.scatter.written:
        return RegBNSite(planned, _replaces_g(planned), _masking(planned, recipe))
    if planned.reduce != "mean":
        raise RewriteError(
            f"rule `{planned.rule}` at `{planned.point}` asks for reduce: {planned.reduce}, but how many positions "
            "the call writes to differs from sample to sample; leave `reduce` at mean there"
        )
    return PositionSite(planned, _replaces_g(planned), into_is_f=_orient(recipe, planned)[0] == 0)


def _masking(planned: PlannedSite, recipe: Recipe | None) -> tuple[str, bool] | None:
    """Which side of a generated or interposed site is masked, and whether True in the mask leaves out."""
    if recipe is None or recipe.mask is None or planned.reduce != "mean":
        return None
    return ("f" if recipe.mask_side == _orient(recipe, planned)[0] else "g"), recipe.mask_leaves_out


def _roles(model: nn.Module, members: list[Operation]) -> Roles | None:
    recipe = next((op.recipe for op in members if op.recipe is not None and op.recipe.cycle is not None), None)
    if recipe is None or recipe.cycle is None:
        return None
    roles = Roles(recipe.cycle)
    model.get_submodule(recipe.caller).register_forward_pre_hook(RoleReset(roles))
    return roles


def _spec(operation: Operation) -> HoistSpec:
    planned, recipe = operation.planned, operation.recipe
    if recipe is None:
        assert planned.pair is not None, "only pairs of inputs have no recipe"
        f, g = (reference.removeprefix("input:") for reference in planned.pair)
        return HoistSpec(planned.name, (f,), (g,), _replaces_g(planned))
    i, j = _orient(recipe, planned)
    if recipe.leaf_arguments is not None:
        names = recipe.leaf_arguments
    else:
        names = tuple((str(take.argument),) for take in recipe.takes)  # type: ignore[assignment]
    mask_of = "f" if recipe.mask_side == i else "g"
    leaves_out = recipe.mask_leaves_out
    return HoistSpec(
        planned.name,
        names[i],
        names[j],
        _replaces_g(planned),
        recipe.role,
        recipe.mask,
        mask_of,
        leaves_out,
    )


def _local(operation: Operation) -> LocalSite:
    planned, recipe = operation.planned, operation.recipe
    assert recipe is not None, "pairs of inputs are hoisted"
    i, j = _orient(recipe, planned)
    return LocalSite(
        planned.name,
        recipe.takes[i],
        recipe.takes[j],
        _replaces_g(planned),
        recipe.role,
        planned.point or "",
        recipe.repeats,
        recipe.scatter,
        i == 0,
        (_within(operation.host, recipe.makers[i]), _within(operation.host, recipe.makers[j])),
        planned.methods,
        recipe.mask,
        recipe.across,
        recipe.rounds,
        (planned.f.anchor, planned.g.anchor),
    )


def _within(host: str, path: str | None) -> str | None:
    """The path of a layer as seen from the host; None where it is not in it."""
    if path is None or not host:
        return path
    return path.removeprefix(f"{host}.") if path.startswith(f"{host}.") else None


def _guard(host: nn.Module, surgery: HostSurgery) -> None:
    """Watch the layers that make both sides of a site."""
    for site in surgery.sites:
        made_inside = all(take.argument is None for take in (site.f, site.g))
        if surgery.opened & set(site.makers):
            continue
        if None in site.makers or site.makers[0] == site.makers[1] or not made_inside:
            continue
        where = f"{type(host).__name__} at `{surgery.path}`" if surgery.path else type(host).__name__
        layers = [host.get_submodule(str(path)) for path in site.makers]
        if any(_takes_no_hook(layer) for layer in layers):
            continue
        for side, layer in zip(("f", "g"), layers, strict=True):
            layer.register_forward_pre_hook(Guard(surgery.token, site.name, side, where))


def _takes_no_hook(layer: nn.Module) -> bool:
    """torch's transformer layers compute in another way where anybody hooks them, and scripted modules have none."""
    fast = (nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.MultiheadAttention)
    return isinstance(layer, (*fast, torch.jit.ScriptModule))


# -- runs -------------------------------------------------------------------------------------------------------------


@contextmanager
def _trial(model: nn.Module, training: bool, writes: bool) -> Iterator[None]:
    with preserved(model, parameters=writes), seeded(), torch.set_grad_enabled(training):
        model.train(training)
        yield


def _run(model: nn.Module, inputs: Inputs, training: bool, writes: bool) -> Any:
    with _trial(model, training, writes):
        args, kwargs = own_arguments(inputs.args, inputs.kwargs)
        return model(*args, **kwargs)


def _capture_hosts(model: nn.Module, runs: list[tuple[Inputs, bool]], writes: bool) -> None:
    """Run the model so that every rewritten host meets, and captures, the calls it gets."""
    hosts = [module for module in model.modules() if ATTRIBUTE in module.__dict__]
    for inputs, training in runs:
        with _trial(model, training, writes), identity(model), _learning(hosts):
            args, kwargs = own_arguments(inputs.args, inputs.kwargs)
            model(*args, **kwargs)


@contextmanager
def _learning(hosts: list[nn.Module]) -> Iterator[None]:
    """For the time of the `with`, every call of a host is captured and answered by the original."""

    def learner(host: nn.Module) -> Callable[..., Any]:
        surgery: HostSurgery = host.__dict__[ATTRIBUTE]

        def forward(*args: Any, **kwargs: Any) -> Any:
            role = surgery.roles.next() if surgery.roles is not None else 0
            with on_the_stack(surgery.token):
                _put(host, before[host])
                try:
                    if role != NO_ROLE and not surgery.interposing:
                        surgery.learn(host, role, args, kwargs)
                    original = original_forward(host)
                finally:
                    host.__dict__["forward"] = forward
                return original(*args, **kwargs)

        return forward

    before = {host: host.__dict__.get("forward") for host in hosts}
    for host in hosts:
        host.__dict__["forward"] = learner(host)
    try:
        yield
    finally:
        for host in hosts:
            _put(host, before[host])


def _put(host: nn.Module, forward: Any) -> None:
    """What stood as `forward` on the instance before; None where nothing did."""
    host.__dict__.pop("forward", None)
    if forward is not None:
        host.__dict__["forward"] = forward


def _check(model: nn.Module, runs: list[tuple[Inputs, bool]], expected: list[Any], writes: bool) -> None:
    """With identity in place of RegBN the outputs are the original's, and every site is reached."""
    sites = {name: module for name, module in model.named_modules() if isinstance(module, RegBNSite)}
    for site in sites.values():
        site.calls = 0
    for (inputs, training), wanted in zip(runs, expected, strict=True):
        with identity(model):
            found = _run_counting(model, inputs, training, writes)
        wrong = difference(wanted, found)
        if wrong is not None and training and _reordered(model):
            wrong = _difference_without_dropout(model, inputs, writes)
        if wrong is not None:
            mode = "training" if training else "evaluation"
            raise RewriteError(f"self-check failed in {mode} mode on {inputs!r}: {wrong}")
    idle = [name for name, site in sites.items() if site.calls == 0]
    if idle:
        raise RewriteError(f"self-check failed: RegBN would never run at {', '.join(idle)}")


def _reordered(model: nn.Module) -> bool:
    """Whether a generated forward makes calls in another order than the original."""
    surgeries = [module.__dict__[ATTRIBUTE] for module in model.modules() if ATTRIBUTE in module.__dict__]
    return any(k.variant.reordered for surgery in surgeries for many in surgery.variants.values() for k in many)


def _difference_without_dropout(model: nn.Module, inputs: Inputs, writes: bool) -> str | None:
    """What differs in training beside the order in which dropout draws its numbers."""
    with without_dropout(model), identity(model):
        with _as_before([module for module in model.modules() if ATTRIBUTE in module.__dict__]):
            wanted = _run(model, inputs, True, writes)
        return difference(wanted, _run(model, inputs, True, writes))


@contextmanager
def _as_before(hosts: list[nn.Module]) -> Iterator[None]:
    """For the time of the `with`, hosts run their original forwards."""
    before = {host: host.__dict__.get("forward") for host in hosts}
    originals = {host: original_forward(host) for host in hosts}
    for host, original in originals.items():
        host.__dict__["forward"] = _on_the_stack(host.__dict__[ATTRIBUTE].token, original)
    try:
        yield
    finally:
        for host in hosts:
            _put(host, before[host])


def _on_the_stack(token: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with on_the_stack(token):
            return forward(*args, **kwargs)

    return run


def _run_counting(model: nn.Module, inputs: Inputs, training: bool, writes: bool) -> Any:
    counts = [(site, site.calls) for site in sites_of(model)]
    with _trial(model, training, writes):
        args, kwargs = own_arguments(inputs.args, inputs.kwargs)
        output = model(*args, **kwargs)
        counts = [(site, site.calls) for site, _ in counts]
    for site, calls in counts:  # `preserved` has put the counters back with all other attributes
        site.calls = calls
    return output


@contextmanager
def _undone_on_error(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except BaseException:
        undo(model)
        raise
