"""A rewritten model in one directory: the recipe and the weights, side by side with what else a library keeps there."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from torch import Tensor, nn

from .. import _codec
from .._codec import CodecError
from .._codes import coded
from .._copying import Model
from .._errors import RecipeError, RegBNError
from .._surgery import KEEP_BESIDE, OWN_ADAPTERS, RECIPE_FILE, Make, adapted_in, undo
from .._untested import tell_untested
from .._user_code import warn_at_call
from ._adapters import adapters_instead
from ._empty import filling
from ._held import holds
from ._names import by_own_names, tied
from ._recipe import Recipe

WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"  # where `transformers` splits the weights over several files


def save_regbn(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Write a rewritten model into a directory: `regbn.json` (the recipe) and `model.safetensors` (the weights).

    A model that has `save_pretrained` (those of `transformers`) writes its weights and its configuration with it: the
    directory is then also a checkpoint of the original class, which does not know RegBN's weights.

    Raises:
        RecipeError: where the model carries no RegBN, where its adapters (`add_adapter` of transformers) would be all
            that is written, or where the source of its classes is not available. Nothing is written then.
    """
    recipe = Recipe.of(model)
    _tell_adapters(model)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    if _pretrains(model):
        model.save_pretrained(folder)  # type: ignore[operator]
    else:
        from safetensors.torch import save_model

        save_model(model, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    recipe.write(folder / RECIPE_FILE)
    if (folder / WEIGHTS_FILE).exists():
        shutil.copymode(folder / RECIPE_FILE, folder / WEIGHTS_FILE)  # safetensors makes files for their owner alone


def load_regbn(
    model: Model,
    directory: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    make: Make | None = None,
) -> Model:
    """Put RegBN into a fresh instance of the original class, in place, and load the weights of a directory.

    Args:
        model: as its own constructor, or `from_pretrained(directory)`, made it. Parameters on the meta device
            (`with torch.device("meta")`, `init_empty_weights` of accelerate) become those of the directory, on the CPU.
        directory: written by `save_regbn`, or by `save_pretrained` of a rewritten model or the Trainer of
            `transformers`.
        recipe: for a directory without one.
        make: as given to `regbnify`, where it was.

    Returns:
        `model`.

    Raises:
        RecipeError: where the recipe or the weights do not fit the model, which is then as it was, and for a folder of
            PEFT's adapters, which PeftModel.from_pretrained loads onto a model with RegBN. Names that
            `save_pretrained` has changed fit. Where it has split or joined tensors, the model must have the values of
            the directory, as from_pretrained made it.
    """
    given: object = model
    if not isinstance(given, nn.Module):
        found = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        raise RegBNError(f"model must be an nn.Module, as its constructor makes it; found {found}")
    folder = Path(directory)
    _refuse_adapters(folder, recipe)
    if recipe is None:
        if not (folder / RECIPE_FILE).exists():
            raise RecipeError(
                f"{folder} contains no {RECIPE_FILE}. It is written by save_regbn, and by save_pretrained of a "
                "rewritten model. For weights saved in another way, repeat regbnify with the same rules on a fresh "
                "model and pass recipe=Recipe.of(that_model), or pass a saved recipe: recipe=Recipe.read(path)."
            )
        recipe = Recipe.read(folder / RECIPE_FILE)
    tell_untested()
    weights = _read_weights(folder)
    rewritten = recipe.put_into_empty(model, make)
    try:
        weights = _renamed(rewritten, weights, folder)
        _refuse_misfit(rewritten, weights, folder)
        fill = filling(rewritten, weights, folder)
    except RecipeError:
        undo(rewritten)
        raise
    fill()
    rewritten.load_state_dict(weights, strict=False)
    return rewritten


def _refuse_adapters(folder: Path, recipe: Recipe | None) -> None:
    """Raises RecipeError for a folder of PEFT's adapters, in which there is no rewritten model as well."""
    known = recipe is not None or (folder / RECIPE_FILE).exists()
    if known and any((folder / name).exists() for name in (WEIGHTS_FILE, _INDEX_FILE)):
        return
    instead = adapters_instead(folder, below=True)
    if instead:
        raise RecipeError(instead)


def _tell_adapters(model: nn.Module) -> None:
    """Warns where the folder will hold adapters of PEFT, which rename weights.

    Raises:
        RecipeError: where `save_pretrained` of transformers would write the adapters alone.
    """
    found = adapted_in(model)
    if not found:
        return
    others = f" and {len(found) - 1} more" if len(found) > 1 else ""
    text = f"{type(model).__name__} has adapters of PEFT (`{found[0]}`{others})"
    if getattr(model, OWN_ADAPTERS, False):
        raise RecipeError(
            f"{text}, added by add_adapter: its save_pretrained writes these alone, neither the model nor RegBN. "
            f"Nothing was written. Save them by save_pretrained, and {KEEP_BESIDE}."
        )
    text += (
        ", which rename its weights: load_regbn refuses to load this folder into a model without them. Where `adapted` "
        "is the PeftModel around it, call save_regbn(copy.deepcopy(adapted).merge_and_unload(), folder); or keep the "
        f"adapters, and {KEEP_BESIDE}."
    )
    warn_at_call(coded("RB414", text))


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        names = _named_in(folder / _INDEX_FILE) if (folder / _INDEX_FILE).exists() else [WEIGHTS_FILE]
        return {key: tensor for name in names for key, tensor in load_file(folder / name).items()}
    except (OSError, ValueError, CodecError, SafetensorError) as error:
        raise RecipeError(f"the weights in {folder} cannot be read: {error}") from error


def _named_in(index: Path) -> list[str]:
    """The files that an index of weights names, all of them beside it (where they may be links, as in the hub's cache).

    Raises:
        CodecError: where it is no index of weights.
        RecipeError: where it names files elsewhere.
    """
    with index.open("rb") as file:
        content: Any = _codec.parse(file.read(_codec.LARGEST + 1))
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise CodecError(str(index), "`weight_map` must map the name of each weight to its file")
    names = sorted(set(found.values()))
    for name in names:
        parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
        if name in ("", ".") or ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
            raise RecipeError(f"{index} refers to a file outside its folder: {name!r}. Nothing was read.")
    return names


def _renamed(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The weights by the names of now.

    `save_pretrained` writes some models under the names of their published checkpoints (`encoder.layer.0` for
    `layers.0`) and `from_pretrained` translates back; so do we where each tensor is written as it is. For any other
    model, one that holds the values of this directory already, since `from_pretrained` has made it, only RegBN's own
    weights are left to load; they are found by the ends of their names.
    """
    wanted = model.state_dict()
    if all(name in wanted for name in weights):
        return weights
    rest = {name: tensor for name, tensor in wanted.items() if not _is_regbn(name)}
    packed = getattr(model, "is_quantized", False)  # then its values are none of the folder's
    known = None if packed else by_own_names(model, weights)
    if known is not None:
        return known
    packed = packed and _made_from(model, folder)
    if not packed and not holds(model, rest, {name: value for name, value in weights.items() if not _is_regbn(name)}):
        return weights
    ours = [name for name in wanted if _is_regbn(name)]
    theirs = [name for name in weights if _is_regbn(name)]
    found = {name: other for name in ours if (other := _longest_end(name, theirs)) is not None}
    if len(set(found.values())) != len(ours) or len(ours) != len(theirs):
        raise RecipeError(
            f"{folder} has RegBN's weights under names that cannot be matched to the model's "
            f"({', '.join(theirs[:_NAMED])}); {type(model).__name__} with RegBN has {', '.join(ours[:_NAMED])}. Save "
            "its state_dict with torch.save."
        )
    return {**rest, **{name: weights[other] for name, other in found.items()}}


def _pretrains(model: nn.Module) -> bool:
    """Whether the model knows how to save itself, as those of transformers do."""
    return callable(getattr(model, "save_pretrained", None))


def _made_from(model: nn.Module, folder: Path) -> bool:
    """Whether `from_pretrained` of transformers has made the model of what is in this directory."""
    origin = getattr(getattr(model, "config", None), "_name_or_path", None)
    return bool(origin) and Path(str(origin)).resolve() == folder.resolve()


def _is_regbn(name: str) -> bool:
    return any(part.startswith("regbn_") for part in name.split("."))


def _longest_end(name: str, others: list[str]) -> str | None:
    """The one among `others` whose last parts agree with `name` the longest; None where it is not one."""

    def common(other: str) -> int:
        pairs = zip(reversed(name.split(".")), reversed(other.split(".")), strict=False)
        return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

    ranked = sorted(others, key=common, reverse=True)
    if not ranked or (len(ranked) > 1 and common(ranked[0]) == common(ranked[1])):
        return None
    return ranked[0]


def _refuse_misfit(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Raises RecipeError for weights of other names or shapes. Of tensors that share memory one name is enough."""
    wanted = model.state_dict(keep_vars=True)
    missing = [names[0] for names in tied(model) if not any(name in weights for name in names)]
    strange = [name for name in weights if name not in wanted]
    other = [
        f"{name} {list(tensor.shape)} instead of {list(wanted[name].shape)}"
        for name, tensor in weights.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    problems = [
        f"{what}: {', '.join(names[:_NAMED])}{' ...' if len(names) > _NAMED else ''}"
        for what, names in (("missing", missing), ("unknown to the model", strange), ("of another size", other))
        if names
    ]
    if problems:
        raise RecipeError(
            f"The weights in {folder} do not fit {type(model).__name__} with RegBN; nothing was changed. Found "
            + "; ".join(problems)
            + f". {_to_do(model, [*missing, *strange], folder)}"
        )


def _to_do(model: nn.Module, names: list[str], folder: Path) -> str:
    """What helps where the weights have other names than the model."""
    if any(not _OF_PEFT.isdisjoint(name.split(".")) for name in names):
        return (
            "Adapters of PEFT rename weights (`base_layer`). Load the model before adapters are added to it, from a "
            "folder that was written without them: save_regbn(copy.deepcopy(adapted).merge_and_unload(), folder), "
            "where `adapted` is the PeftModel around the one that was saved."
        )
    build = "Build the model with the same sizes and options as the one that was saved"
    if not _pretrains(model):
        return f"{build}."
    return (
        f"{build}, by {type(model).__name__}.from_pretrained({str(folder)!r}), which also knows under which "
        "names save_pretrained writes weights; pass what it returns, with the values that it has."
    )


#: Names that PEFT puts between those of a model with adapters.
_OF_PEFT = {"base_layer", "modules_to_save", "original_module", "lora_A", "lora_B"}
#: Names of weights that are spelled out.
_NAMED = 6
