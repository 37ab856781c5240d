"""The four functions most people need: `inspect`, `plan`, `regbnify`, `unregbnify`."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ._analyse import Analysis, analyse
from ._errors import CaptureError, PlanError, RegBNError, RewriteError
from ._inputs import InputsLike, find_inputs, make_batches, named_tensors
from ._plan import decide
from ._rewrite import perform, refuse_second, undo
from ._rules import Rules
from ._types import Inspection, Plan, Side

RulesLike = Rules | str | os.PathLike[str] | Mapping[str, Any]


def inspect(
    model: nn.Module,
    example_inputs: InputsLike | None = None,
    modalities: Mapping[str, Sequence[str]] | None = None,
) -> Inspection:
    """Find where the modalities of a model meet. Changes nothing.

    Args:
        model: any `nn.Module`; run in evaluation and in training mode, at two batch sizes, and put back as it was.
        example_inputs: a tensor or tuple (positional arguments), a dict (keyword arguments), `Inputs(*args,
            **kwargs)`, or a function from the batch size to any of these. At least 2 samples. Without it, the
            model's own `dummy_inputs`.
        modalities: names of inputs by modality, `{"image": ["pixel_values"], "text": ["input_ids"]}`; an input is
            named by its `forward` parameter, with dots into what it holds (`batch.audio`, `inputs.0`). Without it
            every floating input, and every integer input that reaches an embedding table, is a modality.

    Raises:
        InputsError: for example inputs that do not fit, or name what is not there.
        CaptureError: where the model does not run on them.
    """
    return _analysed(model, example_inputs, modalities).inspection


def plan(model: nn.Module, rules: RulesLike, example_inputs: InputsLike | None = None) -> Plan:
    """Apply rules to the fusion points of a model and say what would be done. Changes nothing.

    Args:
        model: as for `inspect`.
        rules: a path to a rules file, the name of a preset, a dict of the same content, or `Rules`.
        example_inputs: as for `inspect`; without it, the rules' `inputs:` section.

    Raises:
        RulesError: for rules that are not well formed.
        PlanError: for rules that cannot be applied; NothingMatchedError for one that matched nothing.
    """
    return _planned(model, Rules.load(rules), example_inputs)[0]


def regbnify(
    model: nn.Module, rules: RulesLike, example_inputs: InputsLike | None = None, *, inplace: bool = False
) -> nn.Module:
    """Put RegBN into a model where the rules say.

    The result is an instance of the model's class with all its original state-dict keys; new ones live under
    `regbn_*`. Before it is returned it has been held to the original, with identity in place of RegBN: the same
    outputs in evaluation and training, at two batch sizes.

    Args:
        model: any `nn.Module`.
        rules: as for `plan`.
        example_inputs: as for `plan`.
        inplace: change `model` itself instead of a deep copy.

    Returns:
        The rewritten model: a copy, or `model` itself where `inplace`.

    Raises:
        RulesError, PlanError, NothingMatchedError, InputsError, CaptureError: as for `plan`.
        AlreadyRewrittenError: where the model already carries RegBN.
        RewriteError: where the model could not be rewritten faithfully. In every case `model` is as it was.
    """
    loaded = Rules.load(rules)
    refuse_second(model)
    made, analysis = _planned(model, loaded, example_inputs)
    target = model if inplace else _copied(model)
    perform(target, made, analysis)
    return target


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


def _analysed(model: nn.Module, example: InputsLike, modalities: Mapping[str, Sequence[str]] | None) -> Analysis:
    if not isinstance(model, nn.Module):
        raise RegBNError(f"model must be an nn.Module; found {type(model).__module__}.{type(model).__qualname__}")
    refuse_wrapped(model)
    return analyse(model, make_batches(model, find_inputs(model, example)), modalities)


def _planned(model: nn.Module, rules: Rules, example_inputs: InputsLike | None) -> tuple[Plan, Analysis]:
    refuse_wrapped(model)
    batches = make_batches(model, find_inputs(model, example_inputs, rules.inputs))
    names = tuple(name for name, _ in named_tensors(model, batches.small))
    named = rules.resolve_modalities(names)
    plain: dict[str, Any] = {name: m if m.modules or m.slice else m.inputs for name, m in named.items()}
    analysis = analyse(model, batches, plain or None)

    def resolve(f: str, g: str) -> tuple[str, Side, Side]:
        pair = analysis.pair(f, g)
        return pair.host, pair.f, pair.g

    return decide(rules, analysis.inspection, resolve), analysis


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
    lazy = next((name for name, p in model.named_parameters() if isinstance(p, nn.UninitializedParameter)), None)
    if lazy is not None:
        raise CaptureError(f"Parameter `{lazy}` of {type(model).__name__} has no shape yet: run the model once first.")


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
