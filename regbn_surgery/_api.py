"""What changes a model, or says what would change: `plan`, `regbnify`, `unregbnify`, `freeze`, `fold`."""

from __future__ import annotations

import dataclasses
import inspect as inspect_module
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ._analysis import Analysis, analyse
from ._analysis._causal import Streams
from ._codes import coded, kept
from ._copying import Model, deep_copy
from ._errors import RewriteError
from ._facts import find_facts, needs, pair_sides, refuse_missing_masks, streams_of
from ._inputs import InputsLike, are_two, find_inputs, make_batches, named_shapes
from ._inspecting import refuse_wrapped
from ._leaving_out import perform_borne
from ._misfits import refusing_strange_names
from ._plan import PairSides, ResolvePair, decide, rebind
from ._rehearsal import rehearse as rehearsed
from ._rules import InputSpec, Rules
from ._state import Snapshot, has_no_values
from ._surgery import (
    SEVERAL_RULES,
    Make,
    Verification,
    carried_in,
    exchange,
    forward_digests,
    out_of_configs,
    refuse_changed,
    refuse_second,
    the_rewritten,
    the_rewritten_to_change,
    undo,
)
from ._surgery import fold as fold_sites
from ._surgery import freeze as freeze_sites
from ._types import Modality, Plan, Replace
from ._undo import forget, guarding, later
from ._untested import tell_untested
from ._user_code import warn_at_call

_WEIGHTLESS = (
    "the model has no weights: the surgery was not tried on a copy, and whether a stream is causal is not known"
)

RulesLike = Rules | str | os.PathLike[str] | Mapping[str, Any]


@refusing_strange_names
@guarding
def plan(
    model: nn.Module,
    rules: RulesLike,
    example_inputs: InputsLike | None = None,
    *,
    rehearse: bool = True,
    steps: int | None = None,
) -> Plan:
    """Apply rules to the fusion points of a model and say what would be done. Changes nothing.

    The plan can be printed, compared, stored (`to_json`) and given to `regbnify` in place of the rules.

    Args:
        model: as for `inspect`.
        rules: a path to a rules file, the name of a preset, a dict of the same content, or `Rules`.
        example_inputs: as for `inspect`; without it, the rules' `inputs:` section. With 16 to 256 samples of real
            data, the plan also says which pairs look independent in them.
        rehearse: also do the surgery on a copy of the model, which shows the tier of each host and what fails. Not
            done for a model without weights.
        steps: number of training steps that will follow; a note says where the running projection would reach less than
            90 % of its limit, and which momentum would be enough.

    Raises:
        RulesError: for rules that are not well formed.
        PlanError: for rules that cannot be applied; NothingMatchedError for one that matched nothing.
    """
    made, analysis = _planned(model, Rules.load(rules), example_inputs, steps)
    weightless = any(has_no_values(tensor) for tensor in (*model.parameters(), *model.buffers()))
    if weightless and made.sites:
        return dataclasses.replace(made, notes=(*kept([coded("RB120", _WEIGHTLESS)], made.ignore), *made.notes))
    if weightless or not rehearse:
        return made
    strict = Rules.load(rules).wants_all
    return rehearsed(model, made, analysis, example_inputs, _copied, strict=strict)


@refusing_strange_names
def regbnify(
    model: Model,
    rules: RulesLike | Plan,
    example_inputs: InputsLike | None = None,
    *,
    inplace: bool = False,
    make: Make | None = None,
) -> Model:
    """Put RegBN into a model where the rules say, or exactly as a plan says.

    The result is an instance of the model's class with all its original state-dict keys; new ones live under
    `regbn_*`. Before it is returned it is compared with the original, with identity in place of RegBN: the outputs must
    agree in evaluation and in training, at two batch sizes.

    Args:
        model: any `nn.Module`.
        rules: as for `plan`, or a `Plan` that was made for this model (or one built the same way). A point that RegBN
            cannot go to is left out with a RegBNWarning; it is an error where the rules say `strict: true`, where
            nothing would be left, and for a `Plan`, which is carried out unchanged.
        example_inputs: as for `plan`.
        inplace: change `model` itself instead of a deep copy.
        make: a function from a site (an entry of `Plan.sites`) to the module that is put there instead of RegBN. It is
            called with f `[B, C, *positions]` and g of its own sizes and returns `(f', g')` of the same shapes; it gets
            no masks. `nn.NormsOnly.at` and `nn.RegressOut.at` come with the package. The module's weights are under the
            names that RegBN's would have.

    Returns:
        The rewritten model: a copy, or `model` itself where `inplace`.

    Raises:
        RulesError, PlanError, NothingMatchedError, InputsError, CaptureError: as for `plan`. PlanError also for a
            plan that was made for another model, with what differs.
        AlreadyRewrittenError: where the model already carries RegBN.
        RewriteError: where the model could not be rewritten faithfully. In every case `model` is as it was.
    """
    return operate(model, rules, example_inputs, inplace=inplace, make=make)[2]


@guarding
def operate(
    model: Model,
    rules: RulesLike | Plan,
    example_inputs: InputsLike | None = None,
    *,
    inplace: bool = False,
    make: Make | None = None,
) -> tuple[Plan, Analysis, Model]:
    """`regbnify`, with the plan and the analysis that it was done by: what a report wants, from one analysis."""
    loaded = rules if isinstance(rules, Plan) else Rules.load(rules)
    refuse_second(model, SEVERAL_RULES)
    _refuse_weightless(model)
    tell_untested()
    if isinstance(loaded, Plan):
        made, analysis = _resumed(model, loaded, example_inputs)
    else:
        made, analysis = _planned(model, loaded, example_inputs)
    target = model if inplace else _copied(model)
    change = later(Snapshot(target).restore)
    strict = isinstance(loaded, Plan) or loaded.wants_all
    done = perform_borne(target, made, analysis, strict=strict)
    if make is not None:
        exchange(target, make)
    forget(change)
    for text in done.warnings[len(made.warnings) :]:
        warn_at_call(text)
    return done, analysis, target


@refusing_strange_names
@guarding
def verify(model: nn.Module, example_inputs: InputsLike, *, training: bool | None = None) -> Verification:
    """Say which modalities f and g carry at each RegBN in a call of your choice, against the rules.

    `regbnify` has checked this for its example inputs. Other calls may take another path through the model: another
    order, a missing modality, another setting. The model is run with identity in place of RegBN and is left unchanged.

    Args:
        model: a model that `regbnify` has rewritten. A wrapper with exactly one such model inside (a PeftModel, DDP, a
            compiled model, a module of your own) stands for it: example inputs are those of the model inside.
        example_inputs: as for `inspect`. With two calls in a list, each RegBN has to run in one of them.
        training: the mode to run it in; None takes the one it is in.

    Returns:
        For each RegBN how often it ran, what f and g carried, and what differs from its rule; `.ok` for all.

    Raises:
        RewriteError: for a model that carries no RegBN put in by `regbnify`.
        InputsError, CaptureError: where the model does not run on the inputs.
    """
    model = the_rewritten(model, ", so there is nothing to verify")
    mode = model.training if training is None else training
    example = find_inputs(model, example_inputs)
    first, *others = (
        carried_in(model, make_batches(model, call), training=mode)
        for call in (example if are_two(example) else [example])
    )
    return _together(first, others[0]) if others else first


def _together(one: Verification, other: Verification) -> Verification:
    """Two calls as one: what ran in neither did not run, and what is wrong in one is wrong."""
    sites = []
    for first, second in zip(one.sites, other.sites, strict=True):
        wrong = [site.problem for site in (first, second) if site.problem and site.runs]
        runs = first.runs + second.runs
        carried = tuple(dict.fromkeys((*first.carried, *second.carried)))
        problem = wrong[0] if wrong else "" if runs else first.problem
        sites.append(dataclasses.replace(first, carried=carried, runs=runs, problem=problem))
    notes = tuple(dict.fromkeys((*one.notes, *other.notes)))
    return dataclasses.replace(one, sites=tuple(sites), notes=notes)


def unregbnify(model: Model) -> Model:
    """Remove every RegBN from a rewritten model, in place: its class, hooks and keys are those from before.

    Returns `model`. Where that is a wrapper with exactly one rewritten model inside (see `verify`), the model inside is
    changed. Adapters of PEFT stay, without RegBN in their `modules_to_save`; to be rid of them too, `merge_and_unload`
    first.

    Raises:
        RewriteError: for a model that carries no RegBN put in by `regbnify`, and for one inside DDP (where RegBN has
            parameters) or FSDP, which go by the parameters that they were made with.
    """
    inner = the_rewritten_to_change(model, "unregbnify", ", so there is nothing to undo")
    before = [path for path, _ in model.named_modules()]
    undo(inner)
    left = {path for path, _ in model.named_modules()}
    out_of_configs(model, [path for path in before if path not in left])
    return model


def freeze(model: Model, frozen: bool = True) -> Model:
    """Freeze every RegBN of a rewritten model, in place: the running projection is subtracted in training, too.

    Evaluation does not change. `frozen=False` undoes it. Returns `model`, which may be a wrapper, as for `unregbnify`.

    Raises:
        RewriteError: as `unregbnify` does.
    """
    freeze_sites(the_rewritten_to_change(model, "freeze"), frozen)
    return model


@refusing_strange_names
@guarding
def fold(model: Model, example_inputs: InputsLike | None = None, *, inplace: bool = False) -> Model:
    """A model for inference in which RegBN has become part of the linear layer behind it, where that is exact.

    It is exact where RegBN is a linear map (`normalize_output: false`, vectors), and f' and g' meet in one
    concatenation that one `nn.Linear` reads. Such a host has the class from before `regbnify`; in evaluation its
    outputs are those of the rewritten model (compared on the example inputs), in training they are not. What cannot be
    folded stays.

    Args:
        model: a model that `regbnify` has rewritten, or a wrapper, as for `unregbnify`.
        example_inputs: as for `inspect`.
        inplace: change `model` itself instead of a deep copy.

    Raises:
        RewriteError: where nothing can be folded, with the reason for each RegBN; `model` is then as it was.
    """
    the_rewritten_to_change(model, "fold")
    target = model if inplace else _copied(model)
    inner = the_rewritten(target)
    change = later(Snapshot(inner).restore)
    fold_sites(inner, make_batches(inner, find_inputs(inner, example_inputs)).first)
    forget(change)
    return target


def _planned(
    model: nn.Module, rules: Rules, example_inputs: InputsLike | None, steps: int | None = None
) -> tuple[Plan, Analysis]:
    refuse_wrapped(model)
    refuse_second(model, SEVERAL_RULES)
    if example_inputs is None:
        _check_section(model, rules)
    example = find_inputs(model, example_inputs, rules.inputs)
    batches = make_batches(model, example)
    second = {} if batches.longer is None else named_shapes(model, batches.longer)
    shapes = {**second, **named_shapes(model, batches.small)}
    modules = [path for path, _ in model.named_modules()]
    rules.resolve_modalities(shapes, modules)  # every name fits
    analysis = analyse(model, batches, _spelt(rules.spelt_modalities()))
    streams = streams_of(model, analysis)
    facts = dataclasses.replace(find_facts(model, analysis, streams), steps=steps)
    made = decide(rules, analysis.inspection, _resolver(analysis, streams), facts)
    for text in made.warnings:
        warn_at_call(text)
    return dataclasses.replace(made, forwards=forward_digests(model, made)), analysis


def _check_section(model: nn.Module, rules: Rules) -> None:
    """Names in the rules' own `inputs:` that `forward` does not take, told with their place in the file."""
    parameters = inspect_module.signature(model.forward).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        rules.check_inputs(list(parameters))


def _resumed(model: nn.Module, made: Plan, example_inputs: InputsLike | None) -> tuple[Plan, Analysis]:
    """The plan bound to an analysis of this very model, if it is the one that the plan was made for."""
    refuse_wrapped(model)
    refuse_changed(model, made)
    specs = {name: InputSpec.model_validate(spec) for name, spec in made.inputs.items()}
    batches = make_batches(model, find_inputs(model, example_inputs, specs))
    analysis = analyse(model, batches, _spelt(made.modalities))
    bound = rebind(made, analysis.inspection, _resolver(analysis))
    refuse_missing_masks(model, analysis, bound)
    return bound, analysis


def _spelt(modalities: Iterable[Modality]) -> Any:
    """Modalities as `analyse` takes them; None leaves them to it."""
    return {m.name: m if m.modules or m.slice else m.inputs for m in modalities} or None


def _resolver(analysis: Analysis, streams: Streams | None = None) -> ResolvePair:
    def resolve(f: str, g: str, replaced: Replace) -> PairSides:
        pair = analysis.pair(f, g, replaced)
        sides = (pair.f, pair.g) if streams is None else pair_sides(analysis, pair, streams)
        return PairSides(pair.host, *sides, *needs(analysis, pair))

    return resolve


def _refuse_weightless(model: nn.Module) -> None:
    tensors = (*model.named_parameters(), *model.named_buffers())
    name = next((name for name, tensor in tensors if has_no_values(tensor)), None)
    if name is not None:
        raise RewriteError(
            f"{type(model).__name__} has no weights: `{name}` is on the meta device or is a fake tensor. `inspect` and "
            "`plan` work with such a model; regbnify does not, since it runs the rewritten model and the original to "
            "compare them. Load the weights (`model.to_empty(device=...)` and `load_state_dict`), then call regbnify."
        )


def _copied(model: Model) -> Model:
    wanted = [(name, p.requires_grad) for name, p in model.named_parameters()]
    try:
        with torch.no_grad():  # scripted submodules copy their parameters by an operation that autograd would record
            copied = deep_copy(model)
    except (TypeError, RuntimeError, ValueError, AttributeError) as error:
        raise RewriteError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). "
            "Pass inplace=True to change the model itself; it is restored if anything fails."
        ) from error
    parameters = dict(copied.named_parameters())
    for name, requires_grad in wanted:
        parameters[name].requires_grad_(requires_grad)
    return copied


__all__ = ["fold", "freeze", "plan", "regbnify", "unregbnify", "verify"]
