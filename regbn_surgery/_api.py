"""The four functions most people need: `inspect`, `plan`, `regbnify`, `unregbnify`."""

from __future__ import annotations

import copy
import dataclasses
import inspect as inspect_module
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from ._analyse import Analysis, ModalityLike, analyse
from ._errors import CaptureError, InputsError, PlanError, RegBNError, RegBNWarning, RewriteError
from ._facts import find_facts, needs
from ._inputs import InputsLike, find_inputs, make_batches, named_tensors
from ._plan import PairSides, ResolvePair, decide, rebind
from ._rehearsal import rehearse as rehearsed
from ._rewrite import fold as fold_sites
from ._rewrite import forward_digests, perform, refuse_changed, refuse_second, undo
from ._rewrite import freeze as freeze_sites
from ._rules import InputSpec, Rules
from ._rules.schema import ModalitySpec
from ._state import has_no_values
from ._types import Inspection, Modality, Plan

RulesLike = Rules | str | os.PathLike[str] | Mapping[str, Any]


def inspect(
    model: nn.Module,
    example_inputs: InputsLike | None = None,
    modalities: Mapping[str, Sequence[str] | Mapping[str, Any] | Modality] | None = None,
) -> Inspection:
    """Find where the modalities of a model meet. Changes nothing.

    Args:
        model: any `nn.Module`; run in evaluation and in training mode, at two batch sizes, and put back as it was.
        example_inputs: a tensor or tuple (positional arguments), a dict (keyword arguments), `Inputs(*args,
            **kwargs)`, or a function from the batch size to any of these. At least 2 samples. A list of two `Inputs`
            of different lengths shows what varies in length. Without it, the model's own `dummy_inputs`.
        modalities: names of inputs by modality, `{"image": ["pixel_values"], "text": ["input_ids"]}`; an input is
            named by its `forward` parameter, with dots into what it holds (`batch.audio`, `inputs.0`). As in a
            rules file, a dict says more: `{"modules": ["text_encoder"]}` for the outputs of modules, `{"inputs": ["x"],
            "slice": {"dim": 1, "range": [0, 8]}}` for a stretch of an input. Without it every floating input, and
            every integer input that reaches an embedding table, is a modality.

    Raises:
        InputsError: for example inputs that do not fit, or name what is not there.
        CaptureError: where the model does not run on them.
    """
    return analysed(model, example_inputs, modalities).inspection


def analysed(
    model: nn.Module,
    example_inputs: InputsLike | None = None,
    modalities: Mapping[str, Sequence[str] | Mapping[str, Any] | Modality] | None = None,
) -> Analysis:
    """`inspect`, with the runs that it was made from."""
    given = None if modalities is None else {name: _modality(name, said) for name, said in modalities.items()}
    return _analysed(model, example_inputs, given)


def _modality(name: str, said: Sequence[str] | Mapping[str, Any] | Modality) -> ModalityLike:
    if isinstance(said, Modality) or not isinstance(said, Mapping):
        return said
    try:
        spec = ModalitySpec.model_validate({key: tuple(v) if isinstance(v, list) else v for key, v in said.items()})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputsError(f"modalities: {name}: {wrong}. A dict may say inputs, modules and slice.") from error
    cut = None if spec.slice is None else (spec.slice.dim, *spec.slice.range)
    return Modality(name, spec.inputs, spec.modules, cut)


def plan(
    model: nn.Module, rules: RulesLike, example_inputs: InputsLike | None = None, *, rehearse: bool = True
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

    Raises:
        RulesError: for rules that are not well formed.
        PlanError: for rules that cannot be applied; NothingMatchedError for one that matched nothing.
    """
    made, analysis = _planned(model, Rules.load(rules), example_inputs)
    weightless = any(has_no_values(tensor) for tensor in (*model.parameters(), *model.buffers()))
    return made if weightless or not rehearse else rehearsed(model, made, analysis, example_inputs, _copied)


def regbnify(
    model: nn.Module, rules: RulesLike | Plan, example_inputs: InputsLike | None = None, *, inplace: bool = False
) -> nn.Module:
    """Put RegBN into a model where the rules say, or exactly as a plan says.

    The result is an instance of the model's class with all its original state-dict keys; new ones live under
    `regbn_*`. Before it is returned it has been held to the original, with identity in place of RegBN: the same
    outputs in evaluation and training, at two batch sizes.

    Args:
        model: any `nn.Module`.
        rules: as for `plan`, or a `Plan` that was made for this model (or one built alike).
        example_inputs: as for `plan`.
        inplace: change `model` itself instead of a deep copy.

    Returns:
        The rewritten model: a copy, or `model` itself where `inplace`.

    Raises:
        RulesError, PlanError, NothingMatchedError, InputsError, CaptureError: as for `plan`. PlanError also for a
            plan that was made for another model, with what differs.
        AlreadyRewrittenError: where the model already carries RegBN.
        RewriteError: where the model could not be rewritten faithfully. In every case `model` is as it was.
    """
    return operate(model, rules, example_inputs, inplace=inplace)[2]


def operate(
    model: nn.Module, rules: RulesLike | Plan, example_inputs: InputsLike | None = None, *, inplace: bool = False
) -> tuple[Plan, Analysis, nn.Module]:
    """`regbnify`, with the plan and the analysis that it was done by: what a report wants, from one analysis."""
    loaded = rules if isinstance(rules, Plan) else Rules.load(rules)
    refuse_second(model)
    _refuse_weightless(model)
    prepare = _resumed if isinstance(loaded, Plan) else _planned
    made, analysis = prepare(model, loaded, example_inputs)  # type: ignore[arg-type]
    target = model if inplace else _copied(model)
    perform(target, made, analysis)
    return made, analysis, target


def unregbnify(model: nn.Module) -> nn.Module:
    """Take every RegBN out of a rewritten model, in place: the very class, hooks and keys it had before.

    Raises:
        RewriteError: for a model that carries no RegBN put in by `regbnify`.
    """
    from ._rewrite._surgery import RECORD

    if RECORD not in model.__dict__:
        raise RewriteError(f"{type(model).__name__} carries no RegBN put in by regbnify, so there is nothing to undo.")
    undo(model)
    return model


def freeze(model: nn.Module, frozen: bool = True) -> nn.Module:
    """Hold every RegBN of a rewritten model still, in place: the running projection is subtracted in training, too.

    Evaluation stays exactly what it was. `frozen=False` takes it back.

    Raises:
        RewriteError: for a model that carries no RegBN put in by `regbnify`.
    """
    return freeze_sites(model, frozen)


def fold(model: nn.Module, example_inputs: InputsLike | None = None, *, inplace: bool = False) -> nn.Module:
    """A model for inference in which RegBN has become part of the linear layer behind it, where that is exact.

    Exact is: RegBN is a linear map (`normalize_output: false`, vectors), and f' and g' meet in one concatenation that
    one `nn.Linear` reads. Such a host is the class that it was before `regbnify`; its outputs in evaluation are those
    of the rewritten model (held to them on the example inputs), in training they are not. What cannot be folded stays.

    Args:
        model: a model that `regbnify` has rewritten.
        example_inputs: as for `inspect`.
        inplace: change `model` itself instead of a deep copy.

    Raises:
        RewriteError: where nothing can be folded, with the reason for each RegBN; `model` is then as it was.
    """
    target = model if inplace else _copied(model)
    training = model.training
    try:
        fold_sites(target, make_batches(target, find_inputs(target, example_inputs)).small)
    except RewriteError:
        target.train(training)
        raise
    return target


def _analysed(model: nn.Module, example: InputsLike, modalities: Mapping[str, ModalityLike] | None) -> Analysis:
    if not isinstance(model, nn.Module):
        raise RegBNError(f"model must be an nn.Module; found {type(model).__module__}.{type(model).__qualname__}")
    refuse_wrapped(model)
    return analyse(model, make_batches(model, find_inputs(model, example)), modalities)


def _planned(model: nn.Module, rules: Rules, example_inputs: InputsLike | None) -> tuple[Plan, Analysis]:
    refuse_wrapped(model)
    if example_inputs is None:
        _check_section(model, rules)
    example = find_inputs(model, example_inputs, rules.inputs)
    batches = make_batches(model, example)
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model, batches.small)}
    modules = [path for path, _ in model.named_modules()]
    analysis = analyse(model, batches, _spelt(rules.resolve_modalities(shapes, modules).values()))
    facts = find_facts(model, analysis, example)
    made = decide(rules, analysis.inspection, _resolver(analysis), facts)
    for text in made.warnings:
        warnings.warn(text, RegBNWarning, stacklevel=3)
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
    return rebind(made, analysis.inspection, _resolver(analysis)), analysis


def _spelt(modalities: Iterable[Modality]) -> Any:
    """Modalities as `analyse` takes them; None leaves them to it."""
    return {m.name: m if m.modules or m.slice else m.inputs for m in modalities} or None


def _resolver(analysis: Analysis) -> ResolvePair:
    def resolve(f: str, g: str) -> PairSides:
        pair = analysis.pair(f, g)
        return PairSides(pair.host, pair.f, pair.g, *needs(analysis, pair))

    return resolve


#: Wrappers whose inside cannot be seen or must not change any more, with what to do instead.
_WRAPPERS = {
    "OptimizedModule": "pass the module itself, and compile the result",
    "DistributedDataParallel": "put RegBN into the module first, and wrap the result",
    "FullyShardedDataParallel": "put RegBN into the module first, and shard the result",
    "DataParallel": "put RegBN into the module first, and wrap the result",
    "RecursiveScriptModule": "scripted code cannot be followed; pass the module it was made from",
    "TopLevelTracedModule": "traced code cannot be followed; pass the module it was made from",
}


def refuse_wrapped(model: nn.Module) -> None:
    """Raises CaptureError for a model that is compiled, scripted, wrapped for several devices, or not yet made."""
    advice = _WRAPPERS.get(type(model).__name__)
    if advice is not None:
        raise CaptureError(f"The model is a {type(model).__name__}: {advice}.")
    if model._compiled_call_impl is not None:
        raise CaptureError(f"The {type(model).__name__} has been compiled in place: call compile() after regbnify.")
    for path, module in model.named_modules():
        if any(base.__name__ == "FSDPModule" for base in type(module).__mro__):
            what = f"`{path}` in it has" if path else "It has"
            raise CaptureError(
                f"{what} been sharded (fully_shard): put RegBN into the model first, and shard the result."
            )
    lazy = next((name for name, p in model.named_parameters() if isinstance(p, nn.UninitializedParameter)), None)
    if lazy is not None:
        raise CaptureError(f"Parameter `{lazy}` of {type(model).__name__} has no shape yet: run the model once first.")


def _refuse_weightless(model: nn.Module) -> None:
    tensors = (*model.named_parameters(), *model.named_buffers())
    name = next((name for name, tensor in tensors if has_no_values(tensor)), None)
    if name is not None:
        raise RewriteError(
            f"{type(model).__name__} has no weights: `{name}` is on the meta device or a fake. Such a model can be "
            "inspected and planned for, and not rewritten, since the rewritten model has to be held to the original. "
            "Load the weights (`model.to_empty(device=...)` and `load_state_dict`), then call regbnify."
        )


def _copied(model: nn.Module) -> nn.Module:
    wanted = [(name, p.requires_grad) for name, p in model.named_parameters()]
    try:
        with torch.no_grad():  # scripted submodules copy their parameters by an operation that autograd would record
            copied = copy.deepcopy(model)
    except (TypeError, RuntimeError, ValueError, AttributeError) as error:
        raise RewriteError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). "
            "Pass inplace=True to change the model itself; it is restored if anything fails."
        ) from error
    parameters = dict(copied.named_parameters())
    for name, requires_grad in wanted:
        parameters[name].requires_grad_(requires_grad)
    return copied


__all__ = ["PlanError", "inspect", "plan", "regbnify", "unregbnify"]
