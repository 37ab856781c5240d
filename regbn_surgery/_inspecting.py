"""`inspect`, apart from the rest: it changes nothing, and so does without the rewrite and all that this needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from torch import nn

from ._analysis import Analysis, ModalityLike, analyse
from ._errors import CaptureError, InputsError, RegBNError
from ._inputs import InputsLike, find_inputs, make_batches
from ._misfits import refusing_strange_names
from ._rules.schema import ModalitySpec
from ._spelling import did_you_mean
from ._types import Inspection, Modality
from ._undo import guarding


@refusing_strange_names
def inspect(
    model: nn.Module,
    example_inputs: InputsLike | None = None,
    modalities: Mapping[str, Sequence[str] | Mapping[str, Any] | Modality] | None = None,
) -> Inspection:
    """Find where the modalities of a model meet. Changes nothing.

    Args:
        model: any `nn.Module`; run in evaluation and in training mode, at two batch sizes, and put back as it was.
            Where it does not run in training on the example (it needs targets), only evaluation is used; a note says
            so.
        example_inputs: a tensor or tuple (positional arguments), a dict (keyword arguments), `Inputs(*args,
            **kwargs)`, or a function from the batch size to any of these. At least 2 samples. Tensors, numpy arrays,
            lists of samples, packed rows and objects with fields may be among the arguments. The model runs on the
            example as given first, then on fewer and on repeated samples, where it accepts them. A list of two calls is
            an example and a second one: of other lengths, of another batch size, or for another path through the model.
            Without it, the model's own `dummy_inputs`.
        modalities: names of inputs by modality, `{"image": ["pixel_values"], "text": ["input_ids"]}`; an input is
            named by its `forward` parameter, with dots into what it holds (`batch.audio`, `inputs.0`). As in a rules
            file, a dict can say more: `{"modules": ["text_encoder"]}` for the outputs of modules, `{"inputs": ["x"],
            "slice": {"dim": 1, "range": [0, 8]}}` for a slice of an input. Without it every floating input, and every
            integer input that reaches an embedding table, is a modality.

    Raises:
        InputsError: for example inputs that do not fit, or modalities of inputs or modules that do not exist.
        CaptureError: where the model does not run on them.
    """
    return analysed(model, example_inputs, modalities).inspection


@guarding
def analysed(
    model: nn.Module,
    example_inputs: InputsLike | None = None,
    modalities: Mapping[str, Sequence[str] | Mapping[str, Any] | Modality] | None = None,
) -> Analysis:
    """`inspect`, with the runs that it was made from."""
    given = spelt_modalities(modalities)
    if not isinstance(model, nn.Module):
        raise RegBNError(f"model must be an nn.Module; found {type(model).__module__}.{type(model).__qualname__}")
    refuse_wrapped(model)
    refuse_rewritten(model)
    return analyse(model, make_batches(model, find_inputs(model, example_inputs)), given)


def spelt_modalities(
    modalities: Mapping[str, Sequence[str] | Mapping[str, Any] | Modality] | None,
) -> dict[str, ModalityLike] | None:
    """Modalities as a user gives them, as `analyse` takes them. Raises InputsError for anything else."""
    if modalities is not None and not isinstance(modalities, Mapping):
        raise InputsError(
            f"modalities must be a dict, as in {{'image': ['pixel_values']}}; found {type(modalities).__name__}. "
            "Several inputs of a model go into one tuple or dict: inspect(model, (x, y))."
        )
    return None if modalities is None else {name: _modality(name, said) for name, said in modalities.items()}


def _modality(name: str, said: Sequence[str] | Mapping[str, Any] | Modality) -> ModalityLike:
    if isinstance(said, Modality) or not isinstance(said, Mapping):
        return said
    try:
        spec = ModalitySpec.model_validate({key: tuple(v) if isinstance(v, list) else v for key, v in said.items()})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        known = list(ModalitySpec.model_fields)
        hint = next((did_you_mean(str(key), known) for key in said if key not in known), "")
        raise InputsError(
            f"modalities: {name}: {wrong}. A dict may have the keys inputs, modules and slice{hint}"
        ) from error
    cut = None if spec.slice is None else (spec.slice.dim, *spec.slice.range)
    return Modality(name, spec.inputs, spec.modules, cut)


#: Wrappers whose inside cannot be seen or must not change any more, with what to do instead.
_WRAPPERS = {
    "OptimizedModule": "pass the module itself, and compile the result",
    "DistributedDataParallel": "put RegBN into the module first, and wrap the result",
    "FullyShardedDataParallel": "put RegBN into the module first, and shard the result",
    "DataParallel": "put RegBN into the module first, and wrap the result",
    "RecursiveScriptModule": "scripted code cannot be followed; pass the module it was made from",
    "PeftModel": (
        "put RegBN into the model first, and add adapters to the result, with RegBN listed in `modules_to_save`: "
        "`get_peft_model(regbnify(base, ...), LoraConfig(..., modules_to_save=['regbn_<id of the rule>.regbn']))`. "
        "For a model that already has adapters, call `regbnify(model.get_base_model(), ..., inplace=True)`"
    ),
    "TopLevelTracedModule": "traced code cannot be followed; pass the module it was made from",
}


def refuse_rewritten(model: nn.Module) -> None:
    """Raises AlreadyRewrittenError for a model with RegBN, whose own calculations would be taken for fusion points."""
    from ._surgery import refuse_second  # much to import for what `inspect` needs of it

    refuse_second(model)


def refuse_wrapped(model: nn.Module) -> None:
    """Raises CaptureError for a model that is compiled, scripted, wrapped for several devices, or not yet made."""
    advice = next((_WRAPPERS[base.__name__] for base in type(model).__mro__ if base.__name__ in _WRAPPERS), None)
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
