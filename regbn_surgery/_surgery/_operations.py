"""How each planned site goes in: by which way, at which host, and as which modules and hooks."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from .._analysis import Analysis, Recipe, index_of
from .._analysis._masks import Masking
from .._errors import RewriteError
from .._types import PaddingMask, Plan, PlannedSite
from ..nn import convert_sync_regbn
from ..nn._ranks import synchronised
from ._branches import with_branches
from ._classes import install, install_for_symbols, original_class, unbound_function
from ._code_sites import Oriented, code_site
from ._given import may_exchange, other_calls
from ._graph_host import GraphHost
from ._guard import ATTRIBUTE, Guard
from ._hoist import HoistHook, HoistSpec, HookedRoot, positions_of, refuse_changed_forward, text_of_forward
from ._host import HostSurgery
from ._keep import keep
from ._local import LocalSite
from ._locate import Locator
from ._opened import refuse_hooks
from ._record import CodeSite, FunctionText, MaskArgument, Place, Way
from ._roles import RoleReset, Roles, ways_of
from ._scatter import PositionSite
from ._site import RegBNSite


@dataclass(frozen=True)
class Operation:
    """One planned site with the way in which it goes in, and the host in which its module is registered.

    Exactly one of `hook`, `code` and `graph` says how. `unhooked`: why a hook on the host's arguments would not do.
    """

    planned: PlannedSite
    host: str
    hook: HoistSpec | None = None
    code: CodeSite | None = None
    graph: LocalSite | None = None
    roles: tuple[tuple[int, ...], str] | None = None  # of a shared owner: the roles of its calls within one of a module
    ways: tuple[tuple[Way, int], ...] = ()  # by which expressions these calls come, each with its role
    texts: tuple[FunctionText, ...] = ()  # of the functions that surgery writes into
    unhooked: str = ""
    keeper: str = ""  # path of the module that keeps the RegBN, where that is not the host

    @property
    def tier(self) -> int:
        """1: a hook; 2: the host's code, or a graph of it."""
        return 1 if self.hook is not None else 2


def name_in_host(operation: Operation) -> str:
    """By which name the host knows the RegBN of a site."""
    return operation.planned.name if operation.code is None else operation.code.name


def operations_for(model: nn.Module, plan: Plan, analysis: Analysis, hooks: bool) -> list[Operation]:
    """The plan's sites with their ways in. Pairs at one call go in sequence, so that all of them have hooks or none.

    Raises:
        RewriteError: for a site to which no way leads.
    """
    chosen = [_chosen(model, planned, analysis, hooks) for planned in plan.sites]
    coded = {p.point for p, recipe, path, hooked in chosen if not hooked and p.point is not None and path == p.host}
    if hooks:
        chosen = [c if c[0].point not in coded else _chosen(model, c[0], analysis, False) for c in chosen]
    graphs = {path for _, recipe, path, hooked in chosen if recipe is not None and _changes_order(recipe, hooked)}
    locators = {path: _locator(model.get_submodule(path)) for _, _, path, hooked in chosen if not hooked}
    return [
        _operation(model, planned, recipe, path, hooked, path in graphs, locators.get(path))
        for planned, recipe, path, hooked in chosen
    ]


def _changes_order(recipe: Recipe, hooked: bool) -> bool:
    """Whether calls of the host have to wait for RegBN, so that its own code will not do."""
    return recipe.across is not None or (recipe.waits and not hooked)


def _locator(host: nn.Module) -> Locator:
    return Locator(original_class(host), unbound_function(host), vars(host).values())


def _chosen(
    model: nn.Module, planned: PlannedSite, analysis: Analysis, hooks: bool
) -> tuple[PlannedSite, Recipe | None, str, bool]:
    """The site, its recipe, its host, and whether a hook serves."""
    if planned.pair is not None:
        pair = analysis.pair(*planned.pair, planned.replace)
        planned = replace(planned, padding=_padding(planned, pair.masking, 0))
        return planned, pair.recipe, pair.host, pair.recipe is None
    assert planned.site is not None, "a planned site is at a point or at a pair"
    point = next(p for p in analysis.inspection.fusion_points if p.id == planned.point)
    recipe = analysis.recipes[(point.id, index_of(planned.site, point))]
    masks = _padding(planned, recipe.masking, _orient(recipe, planned)[0])
    planned = replace(planned, padding=masks)
    if hooks and recipe.leaf is not None and all(mask.layer for mask in masks):
        return planned, recipe, recipe.leaf, True
    hooked = hooks and recipe.leaf is None and not any(mask.layer for mask in masks)
    hooked = hooked and _is_hoistable(recipe, point.kind, planned)
    outer = recipe.outer
    renamed = None if outer is None else _renamed(masks, recipe, outer)
    if hooked and outer is not None and renamed is not None:
        outer = replace(outer, elsewhere=functools.partial(_outer_elsewhere, recipe))
        if not outer.named or (point.kind in _JOINS and exchanges(model, outer)):
            return replace(planned, padding=renamed), outer, outer.owner, False
    return planned, recipe, recipe.owner, hooked


def _arguments(planned: PlannedSite) -> tuple[MaskArgument, ...]:
    return tuple(MaskArgument(m.side, m.argument, m.leaves_out, m.layer) for m in planned.padding or ())


def _renamed(masks: tuple[PaddingMask, ...], inner: Recipe, outer: Recipe) -> tuple[PaddingMask, ...] | None:
    """The masks by the names that the owner's caller is given them by; None where it makes one of them itself."""
    if not masks:
        return ()
    numbers = {argument.name: argument.uid for argument in inner.masking.arguments() if argument.uid is not None}
    names = {argument.uid: argument.name for argument in outer.masking.arguments() if argument.uid is not None}
    new = [None if mask.layer else names.get(numbers.get(mask.argument, -1)) for mask in masks]
    if None in new:
        return None
    return tuple(replace(mask, argument=str(name)) for mask, name in zip(masks, new, strict=True))


#: Kinds at which an owner that is given two branches joins them as they are.
_JOINS = ("concat", "sum", "product")


def _outer_elsewhere(recipe: Recipe) -> tuple[Recipe, ...]:
    """The site in the owner's caller, as the other runs have it."""
    others = recipe.elsewhere() if recipe.elsewhere is not None else ()
    return tuple(other.outer for other in others if other.outer is not None)


def exchanges(model: nn.Module, outer: Recipe) -> bool:
    """Whether the text of the owner's caller may hand the two branches over in exchanged places."""
    locator = _locator(model.get_submodule(outer.owner))
    spot = outer.spots[outer.key]
    place = locator.place(spot.frames, spot.op)
    if place is None or any(step.ordinal < 0 for step in place.steps):
        return False
    function = locator.functions(place)[-1][1]
    return may_exchange(locator.source(function), place.steps[-1].ordinal)


def _at_other_calls(locator: Locator, site: CodeSite) -> CodeSite:
    """A site at the call of an owner, with the other calls of it that stand in the same function."""
    *before, last = site.join.steps
    if last.ordinal < 0:
        return site
    source = locator.source(locator.functions(site.join)[-1][1])
    steps = [replace(last, ordinal=ordinal, instruction=-1) for ordinal in other_calls(source, last.ordinal)]
    also = tuple(Place((*before, step), site.join.op) for step in steps)
    g_readers = (*site.g_readers, *also) if site.replace_g else ()
    return replace(site, f_readers=(*site.f_readers, *also), g_readers=g_readers)


def _operation(
    model: nn.Module,
    planned: PlannedSite,
    recipe: Recipe | None,
    path: str,
    hooked: bool,
    as_graph: bool,
    locator: Locator | None,
) -> Operation:
    ways = () if recipe is None else recipe.ways
    if recipe is None or hooked:
        roles = (recipe.cycle, recipe.caller) if recipe is not None and recipe.cycle is not None else None
        forward = text_of_forward(model.get_submodule(path))
        known = () if forward is None else (forward,)
        return Operation(planned, path, hook=_spec(planned, recipe), roles=roles, ways=ways_of(ways), texts=known)
    roles = None if recipe.cycle is None else (recipe.cycle, recipe.caller)
    if as_graph:
        local = _local(planned, recipe, path)
        return Operation(planned, path, graph=local, roles=roles, ways=ways_of(ways))
    assert locator is not None, "every host that is not hooked has one"
    i, j = _orient(recipe, planned)
    makers = (_within(path, recipe.makers[i]), _within(path, recipe.makers[j]))
    masks = _arguments(planned)
    site = code_site(locator, Oriented(planned, recipe, i, _replaces_g(planned), makers, masks))
    site = with_branches(locator, site)
    if recipe.named:
        site = _at_other_calls(locator, site)
    texts = locator.texts(site.places())
    keeper = recipe.leaf or planned.host  # what a hook would be on keeps RegBN in any case: its path is the same
    if keeper == path:
        return Operation(planned, path, code=site, roles=roles, ways=ways_of(ways), texts=texts)
    alias = f"{planned.name}_{_within(path, keeper)}".replace(".", "_")
    renamed = replace(site, name=alias)
    return Operation(
        planned,
        path,
        code=renamed,
        roles=roles,
        ways=ways_of(ways),
        texts=texts,
        keeper=keeper,
    )


def _is_hoistable(recipe: Recipe, kind: str, planned: PlannedSite) -> bool:
    """Whether replacing the owner's arguments replaces what the site means, and nothing else."""
    if recipe.repeats or any(take.argument is None for take in recipe.takes):
        return False
    if kind == "attention":  # its site is the owner's inputs, whatever else the owner does with them
        return True
    f, g = _orient(recipe, planned)
    replaced = (f, g) if _replaces_g(planned) else (f,)
    return all(recipe.whole_input[i] for i in replaced)


def _padding(planned: PlannedSite, masking: Masking, f: int) -> tuple[PaddingMask, ...]:
    """The masks of a site, as the plan has them; as they are found, where it does not say. `f`: which side is f."""
    if planned.reduce != "mean":
        return ()
    if planned.padding is not None:
        return planned.padding
    return tuple(
        PaddingMask("f" if mask.side == f else "g", mask.name, mask.leaves_out, mask.layer) for mask in masking.found
    )


def _orient(recipe: Recipe, planned: PlannedSite) -> tuple[int, int]:
    """Which side of the recipe is f and which is g."""
    if planned.site is None:
        return 0, 1
    f = 0 if planned.site.sides[0] == planned.f else 1
    return f, 1 - f


def _replaces_g(planned: PlannedSite) -> bool:
    return planned.replace == "both" and (planned.site is None or planned.site.gate is None)


def put_in(
    model: nn.Module,
    operations: Sequence[Operation],
    writes_parameters: bool,
    by_mode: str | Mapping[str, str] = "",
) -> None:
    """Register the modules, and make the hosts run them. `by_mode`: why all hosts in code, or those named, are to run
    under a function mode.

    Raises:
        RewriteError: where a site does not fit the host that is there.
    """
    ranks = synchronised(model)  # a model that is converted already has RegBN that joins the same ranks
    by_host: dict[tuple[str, int], list[Operation]] = {}
    hooked_root: tuple[HoistSpec, ...] = ()
    for operation in operations:
        by_host.setdefault((operation.host, operation.tier), []).append(operation)
    for (path, tier), members in by_host.items():
        host = model.get_submodule(path)
        for operation in members:
            site = _site_module(operation)
            if ranks is not None and "sync" not in operation.planned.options:
                convert_sync_regbn(site, ranks.group)
            keep(model, operation.keeper or path, operation.planned.name, site)
            if operation.keeper and operation.code is not None:
                host.__dict__[operation.code.name] = site
        roles = _roles(model, members)
        if tier == 1:
            specs = tuple(operation.hook for operation in members if operation.hook is not None)
            texts = tuple(dict.fromkeys(text for operation in members for text in operation.texts))
            refuse_changed_forward(host, texts, path)
            hook = HoistHook(specs, positions_of(host), roles, path, texts)
            host.register_forward_pre_hook(hook, with_kwargs=True)
            hooked_root = hooked_root if path else specs
            continue
        surgery: HostSurgery | GraphHost
        graphs = tuple(operation.graph for operation in members if operation.graph is not None)
        if graphs:
            surgery = GraphHost(path, graphs, roles, writes_parameters)
        else:
            sites = tuple(operation.code for operation in members if operation.code is not None)
            texts = tuple(dict.fromkeys(text for operation in members for text in operation.texts))
            surgery = HostSurgery(path, sites, texts, roles, writes_parameters)
            surgery.by_mode = by_mode if isinstance(by_mode, str) else by_mode.get(path, "")
            surgery.bind(host)
        install(host, surgery)
        _guard(host, surgery)
    if hooked_root:
        install_for_symbols(model, HookedRoot(hooked_root))
    for module in model.modules():
        known = module.__dict__.get(ATTRIBUTE)
        if isinstance(known, GraphHost):
            refuse_hooks(module, known.opened)


def _site_module(operation: Operation) -> RegBNSite:
    planned, code = operation.planned, operation.code
    masks = next(way.masks for way in (operation.hook, code, operation.graph) if way is not None)
    if code is None or code.scatter is None or code.scatter.written:
        return RegBNSite(planned, _replaces_g(planned), masks)
    if planned.reduce != "mean":
        raise RewriteError(
            f"rule `{planned.rule}` at `{planned.point}` has reduce: {planned.reduce}, but the number of positions "
            "that the call writes to differs between samples; use `reduce: mean` there"
        )
    return PositionSite(planned, _replaces_g(planned), code.into_is_f, masks)


def _roles(model: nn.Module, members: list[Operation]) -> Roles | None:
    found = next((operation for operation in members if operation.roles is not None), None)
    if found is None or found.roles is None:
        return None
    cycle, caller = found.roles
    roles = Roles(cycle, found.ways)
    model.get_submodule(caller).register_forward_pre_hook(RoleReset(roles))
    return roles


def _spec(planned: PlannedSite, recipe: Recipe | None) -> HoistSpec:
    if recipe is None:
        assert planned.pair is not None, "only pairs of inputs have no recipe"
        f, g = (reference.removeprefix("input:") for reference in planned.pair)
        return HoistSpec(planned.name, (f,), (g,), _replaces_g(planned), masks=_arguments(planned))
    i, j = _orient(recipe, planned)
    if recipe.leaf_arguments is not None:
        names = recipe.leaf_arguments
    else:
        names = tuple((str(take.argument),) for take in recipe.takes)  # type: ignore[assignment]
    return HoistSpec(planned.name, names[i], names[j], _replaces_g(planned), recipe.role, _arguments(planned))


def _local(planned: PlannedSite, recipe: Recipe, host: str) -> LocalSite:
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
        (_within(host, recipe.makers[i]), _within(host, recipe.makers[j])),
        planned.methods,
        _arguments(planned),
        recipe.across,
        recipe.rounds,
        (planned.f.anchor, planned.g.anchor),
    )


def _within(host: str, path: str | None) -> str | None:
    """The path of a layer as seen from the host; None where it is not in it."""
    if path is None or not host:
        return path
    return path.removeprefix(f"{host}.") if path.startswith(f"{host}.") else None


def _guard(host: nn.Module, surgery: HostSurgery | GraphHost) -> None:
    """Watch the layers that make both sides of a site."""
    for site in surgery.sites:
        made_inside = all(end.argument is None for end in (site.f, site.g))
        if isinstance(surgery, GraphHost) and surgery.opened & set(site.makers):
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
