"""What a plan wants to know of a model and its example beside the fusion points."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ._analysis import Analysis
from ._analysis._beside import goes_on_beside
from ._analysis._causal import Streams
from ._analysis._pairs import Pair, named_pair
from ._analysis._runs import Run
from ._errors import PlanError
from ._inputs import named_leaves
from ._plan import Beside, Facts, SiteMasks
from ._spelling import did_you_mean
from ._state import has_no_values
from ._surgery import kept_at
from ._trace import Trace
from ._types import PaddingMask, Plan, PlannedSite, Side


def find_facts(model: nn.Module, analysis: Analysis, streams: Streams | None = None) -> Facts:
    """Look at the model and its weights; runs the model where streams of tokens meet others."""
    causal, sides = _causality(analysis, streams or streams_of(model, analysis))
    masks = _masks(analysis.runs[0])
    return Facts(
        references=references_of(analysis),
        batch=analysis.batches.samples,
        weights_seen=True,
        has_pretrained_class=has_pretrained_class(model),
        trained=why_trained(model),
        causal=causal,
        streams=sides,
        layers={place: recipe.leaf for place, recipe in analysis.recipes.items() if recipe.leaf is not None},
        beside=_beside(analysis),
        masks=masks,
        padded=_padded(model, analysis, masks),
        masks_at=functools.partial(masks_at, model, analysis),
        kept_at=functools.partial(kept_at, model),
    )


def streams_of(model: nn.Module, analysis: Analysis) -> Streams:
    """For questions about causality; runs nothing before one is asked."""
    return Streams(
        model,
        analysis.batches.small,
        analysis.runs[0].trace,
        analysis.inspection.modalities,
        writes_parameters=analysis.writes_parameters,
    )


#: A side of a site of a point: its id, the index of the site, 0 or 1.
_Place = tuple[str, int, int]


def _causality(analysis: Analysis, streams: Streams) -> tuple[frozenset[str], frozenset[_Place]]:
    """The causal modalities among those that meet others with their positions, and the sides that are streams."""
    sides: dict[_Place, Side] = {
        (point.id, i, j): side
        for point in analysis.inspection.fusion_points
        for i, site in enumerate(point.sites)
        for j, side in enumerate(site.sides)
        if _has_positions(side)
    }
    causal = streams.causal(dict.fromkeys(name for side in sides.values() for name in side.home))
    sides = {place: side for place, side in sides.items() if causal & set(side.home)}
    evaluated = {point.id for point in analysis.inspection.fusion_points if "eval" in point.modes}
    uids: dict[_Place, int] = {}
    for (point, i, j), side in sides.items():
        uid = analysis.recipes[point, i].takes[j].uid
        # What training alone does is in no trace that could be run again, and what is scattered lies otherwise.
        if point in evaluated and analysis.runs[0].trace.tensors[uid].shape == side.shape:
            uids[point, i, j] = uid
    found: set[int] = set()
    for name in causal:
        axes = {uid: sides[place].layout.spatial_dims[0] for place, uid in uids.items() if name in sides[place].home}
        found |= streams.positional([name], axes) if axes else frozenset()
    return causal, frozenset(
        place for place, side in sides.items() if (uids[place] in found if place in uids else side.layout.sequence)
    )


def _has_positions(side: Side) -> bool:
    return len(side.layout.spatial_dims) == 1


def _beside(analysis: Analysis) -> dict[tuple[str, int], Beside]:
    """The streams that go on beside an attention as they were, by point and index of the site."""
    found = {}
    run = analysis.runs[0]
    for point in analysis.inspection.fusion_points:
        for index in range(len(point.sites)) if point.kind == "attention" else ():
            recipe = analysis.recipes[point.id, index]
            uid = goes_on_beside(run, recipe)
            if uid is not None:
                home = tuple(name for name in run.order if name in run.flow.lineages[uid].home)
                others = (recipe.takes[0].uid, recipe.takes[1].uid)
                found[point.id, index] = Beside(home, functools.partial(_named_pair, run, uid, others))
    return found


def _named_pair(run: Run, f: int, sides: tuple[int, int], other: int) -> tuple[str, str] | None:
    return named_pair(run, f, sides[other])


def _masks(run: Run) -> dict[str, tuple[int, ...]]:
    """The model's inputs that look like masks over the positions of samples: no content, and whole numbers or bool."""
    found = {}
    for name, uid in run.trace.inputs:
        info, lineage = run.trace.tensors[uid], run.flow.lineages.get(uid)
        content = info.dtype.is_floating_point or (lineage is not None and lineage.touched)
        if "mask" in name.lower() and not content and len(info.shape) == 2:
            found[name] = tuple(info.shape)
    return found


def _padded(model: nn.Module, analysis: Analysis, masks: Mapping[str, Any]) -> frozenset[str]:
    """The masks that the example uses: some positions are padding, others content."""
    given = [(name, leaf) for name, leaf in named_leaves(model, analysis.batches.first) if name in masks]
    return frozenset(
        name
        for name, leaf in given
        if isinstance(leaf, torch.Tensor) and not has_no_values(leaf) and bool((leaf != 0).any() and (leaf == 0).any())
    )


def masks_at(model: nn.Module, analysis: Analysis, site: PlannedSite) -> SiteMasks:
    """What could mark the padding of f and g at a planned site."""
    if site.pair is not None:
        masking, first = analysis.pair(*site.pair, site.replace).masking, 0
    else:
        recipe = analysis.recipe_of(site)
        assert recipe is not None, "a point has recipes"
        assert site.site is not None, "a planned site is at a point or at a pair"
        masking, first = recipe.masking, 0 if site.site.sides[0] == site.f else 1
    found = (
        PaddingMask("f" if mask.side == first else "g", mask.name, mask.leaves_out, mask.layer)
        for mask in masking.found
    )
    name = type(model.get_submodule(site.host)).__name__
    return SiteMasks(
        f"{name} at `{site.host}`" if site.host else name,
        tuple(found),
        (masking.open[first], masking.open[1 - first]),
        masking.arguments,
        masking.meaning,
    )


def refuse_missing_masks(model: nn.Module, analysis: Analysis, plan: Plan) -> None:
    """Raises PlanError where a plan from a file names a mask that the host has no argument for."""
    for site in plan.sites:
        named = [mask.argument for mask in site.padding or () if not mask.layer]
        masks = masks_at(model, analysis, site)
        known = [argument.name for argument in masks.arguments()] if named else []
        for name in named:
            if name not in known:
                raise PlanError(
                    f"The plan leaves out padding of {site.path} by `{name}`, which is no argument of {masks.host}"
                    f"{did_you_mean(name, known)}. Make a plan for this model: plan(model, rules, example_inputs)."
                )


def pair_sides(analysis: Analysis, pair: Pair, streams: Streams) -> tuple[Side, Side]:
    """Both sides of a pair, with what is known of their causality."""
    found = []
    for index, side in enumerate((pair.f, pair.g)):
        causal = _has_positions(side) and bool(streams.causal(side.home))
        if causal and pair.recipe is not None:
            uid = pair.recipe.takes[index].uid
            causal = uid in streams.positional(side.home, {uid: side.layout.spatial_dims[0]})
        found.append(replace(side, causal=causal))
    return found[0], found[1]


def references_of(analysis: Analysis) -> tuple[str, ...]:
    """All that a pair may name, in the order in which the model reads or makes it."""
    trace = analysis.runs[0].trace
    made = [(op.index, op.module) for op in trace.calls if op.module is not None]
    # A frame's own output is there after its last operation.
    made += [(frame.start, frame.path) for frame in trace.frames if frame.parent is not None and frame.path != "?"]
    modules = dict.fromkeys(path for _, path in sorted(made, key=lambda item: item[0]))
    return (*(f"input:{name}" for name, _ in trace.inputs), *(f"module:{path}" for path in modules))


def needs(analysis: Analysis, pair: Pair) -> tuple[bool, bool]:
    """Whether g of a pair is computed from f, and f from g."""
    if pair.recipe is None:  # two inputs
        return False, False
    trace = analysis.runs[0].trace
    f, g = (take.uid for take in pair.recipe.takes)
    return _leads(trace, f, g), _leads(trace, g, f)


def _leads(trace: Trace, start: int, end: int) -> bool:
    reached = {start}
    for op in trace.calls:
        if not reached.isdisjoint(op.inputs):
            # What a layer only hands on, as `nn.Identity` does, was made before.
            reached.update(uid for uid in op.outputs if op.inplace or uid not in op.inputs)
    return end in reached and end != start


def has_pretrained_class(model: nn.Module) -> bool:
    """Whether the model or a part of it is a `PreTrainedModel` of transformers, which is not imported for this."""
    return any(
        base.__name__ == "PreTrainedModel" and base.__module__.partition(".")[0] == "transformers"
        for module in model.modules()
        for base in type(module).__mro__
    )


def why_trained(model: nn.Module) -> str | None:
    """What shows that the weights are not fresh: where they come from, or norms that have moved from their start."""
    origin: Any = getattr(getattr(model, "config", None), "_name_or_path", None) or getattr(model, "name_or_path", None)
    if isinstance(origin, str) and origin:
        return f"they come from {origin!r}"
    for name, module in model.named_modules():
        counted = getattr(module, "num_batches_tracked", None)
        if isinstance(counted, torch.Tensor) and not has_no_values(counted) and int(counted) > 0:
            return f"`{name}` has seen {int(counted)} batches"
        if _is_norm(module) and _moved(module):
            return f"the weights of `{name}` have moved from their start"
    return None


def _is_norm(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return name.endswith("norm") or "batchnorm" in name or "layernorm" in name


def _moved(module: nn.Module) -> bool:
    """Whether a norm's affine parameters are neither all one nor all zero, their values at the start."""
    for name in ("weight", "bias"):
        value = getattr(module, name, None)
        if isinstance(value, nn.Parameter) and not has_no_values(value) and value.numel() > 1:
            spread = value.detach().float()
            if not bool(torch.isfinite(spread).all()) or float(spread.max() - spread.min()) > 1e-6:
                return True
    return False
