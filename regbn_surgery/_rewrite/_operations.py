"""How each planned site goes in: at which tier, at which host, and as which modules and hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .._analyse import Analysis, Recipe
from .._errors import RewriteError
from .._types import Plan, PlannedSite
from ._classes import install
from ._guard import ATTRIBUTE, Guard
from ._hoist import HoistHook, HoistSpec, positions_of
from ._host import HostSurgery
from ._keep import keep
from ._local import LocalSite
from ._opened import refuse_hooks
from ._roles import RoleReset, Roles
from ._scatter import PositionSite
from ._site import RegBNSite


@dataclass(frozen=True)
class Operation:
    """One planned site with the tier chosen for it and the host in which its module is registered."""

    planned: PlannedSite
    recipe: Recipe | None  # None at a pair of inputs
    tier: int
    host: str
    unhooked: str = ""  # why a hook on the host's arguments would not do


def operations_for(plan: Plan, analysis: Analysis, hoisting: bool) -> list[Operation]:
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


def put_in(model: nn.Module, operations: Sequence[Operation], writes_parameters: bool) -> None:
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
