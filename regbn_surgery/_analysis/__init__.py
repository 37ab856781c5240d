"""Find the fusion points of a model: run it, follow the modalities, and say where they meet and how things lie."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.fx
from torch import nn

from .._inputs import Batches, named_leaves
from .._trace import Call, Trace
from .._types import FusionPoint, InputTensor, Inspection, Plan, PlannedSite, Replace, Site
from ._anchors import Take
from ._capturing import MODEL_ERRORS, captured, captured_in, run_model
from ._finite import not_finite
from ._flow import follow
from ._insert import Insertion, insert_all
from ._layouts import channel_axes, compare_batches, compare_lengths, layout_of, same_calls
from ._lineage import Home
from ._notes import find_notes
from ._pairs import Pair, resolve_pair
from ._points import find_points
from ._runs import Observed, Run, values_of
from ._sites import Recipe
from ._sources import ModalityLike, Sources, by_lists, find_sources, input_lineages, module_lineages

__all__ = [
    "MODEL_ERRORS",
    "Analysis",
    "ModalityLike",
    "Observed",
    "Recipe",
    "Take",
    "analyse",
    "follow_streams",
    "index_of",
    "insert_regbn",
    "run_model",
    "values_of",
]


@dataclass(frozen=True)
class Analysis:
    """An inspection, with what the rewrite needs to know beside it: a recipe for every site of every point."""

    inspection: Inspection
    recipes: Mapping[tuple[str, int], Recipe]  # by point id and index of the site
    batches: Batches
    runs: tuple[Run, ...]
    writes_parameters: bool  # in its forward, as momentum twins do
    observed: tuple[Observed, ...] = ()  # what the model gave in these runs, where it has values

    @property
    def trains_otherwise(self) -> bool:
        """Whether the model makes other calls in training than in evaluation, or the same ones on other streams."""
        return any(not _alike(self.runs[0], run) for run in self.runs if run.mode == "train")

    @property
    def modes(self) -> tuple[bool, ...]:
        """Whether the model is in training, for each of the modes in which it runs on the example."""
        return (False, True) if any(run.mode == "train" for run in self.runs) else (False,)

    def recipe_of(self, planned: PlannedSite) -> Recipe | None:
        """How the rewrite finds a planned site; None for a pair of the model's own inputs."""
        if planned.pair is not None:
            return self.pair(*planned.pair, planned.replace).recipe
        point = next(point for point in self.inspection.fusion_points if point.id == planned.point)
        assert planned.site is not None, "a planned site is at a point or at a pair"
        return self.recipes[point.id, index_of(planned.site, point)]

    def pair(self, f: str, g: str, replaced: Replace) -> Pair:
        """The two places of a pair rule, of which `replaced` are to be replaced; see `resolve_pair`."""
        return resolve_pair(self.runs[0], f, g, f_only=replaced == "f")


def index_of(site: Site, point: FusionPoint) -> int:
    """Which of the sites of a point a planned one is, with their rows for samples or without."""
    return next(i for i, found in enumerate(point.sites) if site in (found, found.by_rows()))


def insert_regbn(graph: torch.fx.Graph, plan: Plan, analysis: Analysis) -> torch.fx.Graph:
    """A copy of a traced graph with the RegBN of a plan in it: what the run would be after the surgery.

    At each site a `call_module` node has the path of the new submodule for its target (`host.regbn_late`), f and g
    for its arguments and the `PlannedSite` in `meta["regbn"]`; its two items are f' and g', which the calls that the
    site names read. A site that this run does not come by is left out. The graph passes `lint`.

    Args:
        graph: of a run of the model, as `trace` returns it or an analysis holds it (`analysis.runs[0].trace.graph`).
        plan: made from `analysis`.
        analysis: what found the points of the plan.

    Raises:
        PlanError: where one side of a site is computed from what reads the other, so that neither can come first.
    """
    return insert_all(graph, [Insertion(planned, analysis.recipe_of(planned)) for planned in plan.sites])


def analyse(model: nn.Module, batches: Batches, modalities: Mapping[str, ModalityLike] | None = None) -> Analysis:
    """Run the model in evaluation and training mode, at two batch sizes, and analyse what happened.

    The model's parameters, buffers, mode and torch's random state are as before when this returns or raises.

    Raises:
        CaptureError: where the model cannot be run on the example inputs.
        InputsError: where `modalities` name inputs that do not exist.
    """
    got = captured(model, batches)
    batches = got.batches
    sources = find_sources(got.small, modalities, batches.lists, got.other_path)
    order = tuple(modality.name for modality in sources.modalities)
    runs = [_analysed("eval", got.small, (got.large, got.longer), batches, sources, order)]
    if got.train is not None:
        runs.append(_analysed("train", got.train, (got.large_train, got.longer), batches, sources, order))
    if got.other_path is not None:
        others = replace(batches, sizes=batches.longer_sizes)
        runs.append(_analysed("second", got.other_path, (got.other_path_large, None), others, sources, order))
    found = find_points(runs)
    inspection = Inspection(
        model=type(model).__name__,
        modalities=tuple(by_lists(modality, batches.lists) for modality in sources.modalities),
        inputs=_inputs(runs[0]),
        excluded=sources.excluded,
        fusion_points=tuple(f.point for f in found),
        notes=(*batches.notes, *not_finite(runs, _given(model, batches)), *find_notes(runs, sources, found)),
    )
    recipes = {(f.point.id, i): recipe for f in found for i, recipe in enumerate(f.recipes)}
    return Analysis(inspection, recipes, batches, tuple(runs), got.writes, got.observed)


def follow_streams(
    model: nn.Module, batches: Batches, modalities: Mapping[str, ModalityLike] | None, *, training: bool, writes: bool
) -> tuple[Run, tuple[Observed, ...]]:
    """One run of a model in the given mode, with the modalities followed through it: what `verify` looks at. It is
    made at both batch sizes; what the model gave at each comes with it.

    Raises:
        CaptureError, InputsError: as `analyse`.
    """
    observed: list[Observed] = []
    small, large, batches = captured_in(model, batches, observed, training=training, writes=writes)
    sources = find_sources(small, modalities, partly=True)
    order = tuple(modality.name for modality in sources.modalities)
    run = _analysed("train" if training else "eval", small, (large, None), batches, sources, order)
    return run, tuple(observed)


def _analysed(
    mode: str,
    trace: Trace,
    others: tuple[Trace | None, Trace | None],
    batches: Batches,
    sources: Sources,
    order: tuple[str, ...],
) -> Run:
    """`others` are the same run at another batch size and on an example of other lengths, where there are any."""
    axes = compare_batches(trace, others[0], batches.sizes)
    lengths = compare_lengths(trace, others[1])
    channels = channel_axes(trace)
    batch_axes = {**{uid: dim for uid, (dim, _) in axes.folded.items()}, **axes.axis}
    lineages, roots = input_lineages(trace, sources.modalities), module_lineages(trace, sources.modalities)
    flow = follow(trace, lineages, batch_axes, axes.varying, roots)
    layout = functools.cache(lambda uid: layout_of(uid, trace, axes, channels, lengths))
    return Run(mode, trace, flow, layout, order)


def _alike(one: Run, other: Run) -> bool:
    """Whether two runs made the same calls, on the same streams."""
    if not same_calls(one.trace, other.trace):
        return False
    calls = zip(one.trace.calls, other.trace.calls, strict=True)
    return all(_homes(one, call) == _homes(other, its) for call, its in calls)


def _homes(run: Run, call: Call) -> list[Home | None]:
    lineages = [run.flow.lineages.get(uid) for uid in call.inputs]
    return [None if lineage is None else lineage.home for lineage in lineages]


def _given(model: nn.Module, batches: Batches) -> list[tuple[str, torch.Tensor]]:
    """The tensors of the example as the user has it, by name."""
    leaves = [] if batches.given is None else named_leaves(model, batches.given)
    return [(name, leaf) for name, leaf in leaves if isinstance(leaf, torch.Tensor)]


def _inputs(run: Run) -> tuple[InputTensor, ...]:
    tensors = run.trace.tensors
    return tuple(
        InputTensor(name, tensors[uid].shape, str(tensors[uid].dtype).removeprefix("torch."), run.layout(uid))
        for name, uid in run.trace.inputs
    )
