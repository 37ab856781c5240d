"""Find the fusion points of a model: run it, follow the modalities, and say where they meet and how things lie."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.fx
from torch import nn

from .. import _tree
from .._errors import CaptureError, RegBNError
from .._fakes import META, REAL, Fakes, runs_on_meta, standing_in, wants_values
from .._inputs import Batches, Inputs
from .._state import preserved, seeded, watching_parameters
from .._trace import Trace, capture, is_user_file
from .._types import InputTensor, Inspection, Plan, PlannedSite
from ._anchors import Take
from ._flow import follow
from ._insert import Insertion, insert_all
from ._layouts import channel_axes, compare_batches, compare_lengths, layout_of, same_calls
from ._notes import find_notes
from ._pairs import Pair, resolve_pair
from ._points import find_points
from ._runs import Observed, Run, values_of
from ._sites import Recipe
from ._sources import ModalityLike, Sources, find_sources, input_lineages, module_lineages

#: What a model's own code raises when it is run in a way it does not support.
MODEL_ERRORS = (
    RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError, ImportError,
)  # fmt: skip

__all__ = [
    "MODEL_ERRORS", "Analysis", "ModalityLike", "Observed", "Recipe", "Take", "analyse", "follow_streams",
    "insert_regbn", "values_of",
]  # fmt: skip


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
        """Whether the model makes other calls in training than in evaluation."""
        return not same_calls(self.runs[0].trace, self.runs[1].trace)

    def recipe_of(self, planned: PlannedSite) -> Recipe | None:
        """How the rewrite finds a planned site; None for a pair of the model's own inputs."""
        if planned.pair is not None:
            return self.pair(*planned.pair).recipe
        point = next(point for point in self.inspection.fusion_points if point.id == planned.point)
        assert planned.site is not None, "a planned site is at a point or at a pair"
        return self.recipes[point.id, point.sites.index(planned.site)]

    def pair(self, f: str, g: str) -> Pair:
        """The two places of a pair rule; see `resolve_pair`."""
        return resolve_pair(self.runs[0], f, g)


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
    (train, small, large, longer, large_train), written, observed = _captured(model, batches)
    sources = find_sources(small, modalities)
    order = tuple(modality.name for modality in sources.modalities)
    runs = [
        _analysed("eval", small, (large, longer), batches, sources, order),
        _analysed("train", train, (large_train, longer), batches, sources, order),
    ]
    found = find_points(runs)
    inspection = Inspection(
        model=type(model).__name__,
        modalities=sources.modalities,
        inputs=_inputs(runs[0]),
        excluded=sources.excluded,
        fusion_points=tuple(f.point for f in found),
        notes=(*batches.notes, *find_notes(runs, sources, found)),
    )
    recipes = {(f.point.id, i): recipe for f in found for i, recipe in enumerate(f.recipes)}
    return Analysis(inspection, recipes, batches, tuple(runs), written, observed)


def follow_streams(
    model: nn.Module, batches: Batches, modalities: Mapping[str, ModalityLike] | None, *, training: bool, writes: bool
) -> tuple[Run, tuple[Observed, ...]]:
    """One run of a model in the given mode, with the modalities followed through it: what `verify` looks at. It is
    made at both batch sizes; what the model gave at each comes with it.

    Raises:
        CaptureError, InputsError: as `analyse`.
    """
    observed: list[Observed] = []
    run = functools.partial(run_model, model, training=training, writes=writes, observed=observed)
    small = run(batches.small)
    large = None if batches.large is None else run(batches.large)
    sources = find_sources(small, modalities)
    order = tuple(modality.name for modality in sources.modalities)
    return _analysed("train" if training else "eval", small, (large, None), batches, sources, order), tuple(observed)


_Captures = tuple[Trace, Trace, Trace | None, Trace | None, Trace | None]


def _captured(model: nn.Module, batches: Batches) -> tuple[_Captures, bool, tuple[Observed, ...]]:
    """All runs of the model, whether they wrote to its parameters, and what they gave where it has values."""
    if runs_on_meta(model):
        try:
            return *_captured_by(model, batches, META, None), ()
        except CaptureError:
            pass  # fakes can do more, and their errors say more
    observed: list[Observed] = []
    with standing_in(model) as fakes:
        captures, written = _captured_by(model, batches, fakes, observed if fakes is REAL else None)
    return captures, written, tuple(sorted(observed, key=lambda seen: seen.training))


def _captured_by(
    model: nn.Module, batches: Batches, fakes: Fakes, observed: list[Observed] | None
) -> tuple[_Captures, bool]:
    written: list[str] = []
    with watching_parameters(model, written):
        train = run_model(model, batches.small, training=True, fakes=fakes, observed=observed)
    run = functools.partial(run_model, model, writes=bool(written), fakes=fakes, observed=observed)
    small = run(batches.small, training=False)
    large = None if batches.large is None else run(batches.large, training=False)
    longer = None if batches.longer is None else run(batches.longer, training=False)
    large_train = large
    if batches.large is not None and not same_calls(small, train):  # else axes follow the batch size alike
        large_train = run(batches.large, training=True)
    return (train, small, large, longer, large_train), bool(written)


def run_model(
    model: nn.Module,
    inputs: Inputs,
    *,
    training: bool,
    writes: bool = False,
    fakes: Fakes = REAL,
    observed: list[Observed] | None = None,
) -> Trace:
    """Capture one run of the whole model in the given mode, leaving no trace in the model.

    `observed` gets what the run gave. `writes` says that its forward writes to its parameters, so that these have to
    be put back, too. `fakes` is how to run a model without weights.
    """
    with preserved(model, parameters=writes), seeded(), torch.set_grad_enabled(training):
        model.train(training)
        try:
            ours = fakes.inputs(inputs)
            args, kwargs = _tree.cloned((ours.args, ours.kwargs))
            with fakes.running():
                trace, output = capture(model, args, kwargs)
            if observed is not None:
                observed.append(Observed(inputs, training, values_of(output)))
        except RegBNError:
            raise
        except MODEL_ERRORS as error:
            if wants_values(error):
                raise CaptureError(_needs_values(model, error)) from error
            mode = "training" if training else "evaluation"
            raise CaptureError(
                f"{type(model).__name__} could not be run in {mode} mode on {inputs!r}: "
                f"{type(error).__name__}: {error}. "
                "The same call must work without regbn_surgery."
            ) from error
    return trace


def _needs_values(model: nn.Module, error: BaseException) -> str:
    """For a model without weights whose forward looks at values."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_user_file(frame.filename)]
    where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    return (
        f"{type(model).__name__} has parameters without values (on the meta device, or fakes), and its forward needs "
        f"a floating value{where}: {error.__class__.__name__}. Inspect it with real weights, or a smaller model of the "
        "same class (fewer layers, narrower) with real random ones: fusion points have the same ids there."
    )


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


def _inputs(run: Run) -> tuple[InputTensor, ...]:
    tensors = run.trace.tensors
    return tuple(
        InputTensor(name, tensors[uid].shape, str(tensors[uid].dtype).removeprefix("torch."), run.layout(uid))
        for name, uid in run.trace.inputs
    )
