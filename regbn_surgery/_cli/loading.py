"""Gets a model and inputs from what the command line names: `package.module:factory`, `file.py:factory`, a class.

Models of `transformers` (`hf:...`) are in `huggingface.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .._errors import RegBNError
from .._rules.problems import did_you_mean, listing
from .._user_code import cause_text

if TYPE_CHECKING:
    from torch import nn

    from .options import ModelRequest

_FORM = (
    "write `package.module:factory` or `path/to/file.py:factory`; the factory returns a model, or a model and inputs; "
    "`hf:ClassName` or `hf:config.json` names a model of transformers"
)


class ModelNotLoadedError(RegBNError):
    """The command line names a model that cannot be had: no such file or name, or its code fails."""


def load_request(
    request: ModelRequest, *, weights: bool = False, section: Mapping[str, Any] | None = None, planning: bool = False
) -> tuple[nn.Module, Any]:
    """The model that a command line asks for and its example inputs (None where it gives none).

    Runs the user's code. Inputs come from `--inputs`, else from the factory, the rules' `inputs:` (`section`) or the
    model's `dummy_inputs`; `--input` adds to them, or replaces those of its names. `weights` and `planning`: see
    `ModelRequest.load`.
    Raises `ModelNotLoadedError`, with the file and line where the user's code failed.
    """
    if request.spec.startswith("hf:"):
        from .huggingface import LARGE, LARGE_FOR_PLANS, load_pretrained_class

        large = LARGE_FOR_PLANS if planning else LARGE
        weights = weights or request.checkpoint is not None
        spec = request.spec.removeprefix("hf:")
        model, inputs = load_pretrained_class(spec, request.arguments, weights=weights, large=large)
    else:
        model, inputs = load_model(request.spec, request.arguments)
    if request.checkpoint is not None:
        model = load_checkpoint(model, request.checkpoint)
    if request.inputs_from is not None:
        inputs = load_inputs(request.inputs_from)
    if request.tensors:
        from .._added_inputs import with_specs
        from .._inputs import known_inputs

        inputs = with_specs(model, known_inputs(model, inputs, section), request.tensors)
    return model, inputs


def load_model(spec: str, arguments: Mapping[str, Any] | tuple[Any, ...] = ()) -> tuple[nn.Module, Any]:
    """Import and call what `spec` names. Returns the model and its example inputs (None where it gives none).

    Runs the user's code. Raises `ModelNotLoadedError` with the file and line where that code failed.
    """
    return _model_of(_call(load_object(spec), spec, arguments), spec)


def load_object(spec: str, what: str = "the model is", form: str = _FORM) -> Any:
    """What `package.module:name` or `file.py:name` names, imported. Raises `ModelNotLoadedError`."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise ModelNotLoadedError(f"{spec!r} does not say where {what}: {form}")
    module = _import_file(place, form) if _is_file(place) else _import_name(place)
    return _attribute(module, name, place)


def load_inputs(spec: str) -> Any:
    """Example inputs from `MODULE:NAME`: a value, what a function without arguments returns, or a function of the
    batch size. Raises `ModelNotLoadedError`."""
    found = load_object(spec, "the inputs are", "write `package.module:name` or `path/to/file.py:name`")
    if not inspect.isroutine(found):
        return found
    if any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in inspect.signature(found).parameters.values()):
        return found
    return _called(found, spec, "making the inputs", ())


def load_data(spec: str) -> Any:
    """Batches from `MODULE:NAME`: an iterable, or a function that returns one. Raises `ModelNotLoadedError`."""
    found = load_object(spec, "the data are", "write `package.module:name` or `path/to/file.py:name`")
    if callable(found) and not hasattr(found, "__iter__"):
        found = _called(found, spec, "making the data", ())
    if not hasattr(found, "__iter__"):
        raise ModelNotLoadedError(f"the data {spec!r} cannot be iterated: found a value of type {type(found).__name__}")
    return found


def load_checkpoint(model: nn.Module, path: str) -> nn.Module:
    """Load a state dict strictly, without running code from the file; returns the model.

    The weights of a model with RegBN come with its recipe, if they lie in a folder of `save_regbn`.
    Raises `ModelNotLoadedError`; a RegBNError where that folder does not fit.
    """
    content = _read_checkpoint(path)
    _refuse_adapters(model, path, content)
    strange = sorted(_of_regbn(content) - set(model.state_dict()))
    if strange and not _carries_regbn(model):
        return _load_with_regbn(model, path, strange)
    try:
        model.load_state_dict(_as_named_now(model, content))
    except RuntimeError as error:  # keys or sizes that differ: torch lists them
        told = _from_pretrained(model, error)
        raise ModelNotLoadedError(
            f"the checkpoint {path!r} does not fit {type(model).__name__}: {error}{told}"
        ) from error
    return model


def _refuse_adapters(model: nn.Module, path: str, content: Mapping[str, Any]) -> None:
    """Raises `ModelNotLoadedError` for weights of PEFT's adapters, which no model has by the names in their files."""
    from .._checkpoint._adapters import adapters_instead, adapters_without_folder, are_adapters

    if not are_adapters(content) or content.keys() <= model.state_dict().keys():
        return
    instead = adapters_instead(Path(path).parent) or f"{adapters_without_folder()}."
    raise ModelNotLoadedError(
        f"the checkpoint {path!r} does not fit {type(model).__name__}: {instead} Give a factory that returns this "
        "model as MODEL, without --checkpoint"
    )


def _carries_regbn(model: nn.Module) -> bool:
    from .._surgery import rewritten_inside

    return bool(rewritten_inside(model))


def _of_regbn(content: Mapping[str, Any]) -> set[str]:
    """Names of the state of RegBN, of a site's or of one that PEFT trains a copy of."""
    return {
        key for key in content if isinstance(key, str) and any(part.startswith("regbn_") for part in key.split("."))
    }


def _load_with_regbn(model: nn.Module, path: str, found: list[str]) -> nn.Module:
    """The model with RegBN put in and loaded, where the recipe lies beside its weights; `found`: names of its state.

    Raises `ModelNotLoadedError` where it does not.
    """
    from .._checkpoint import load_regbn
    from .._checkpoint._files import WEIGHTS_FILE
    from .._surgery import RECIPE_FILE

    file, name = Path(path), type(model).__name__
    beside = (file.parent / RECIPE_FILE).is_file()
    if beside and file.name == WEIGHTS_FILE:
        return load_regbn(model, file.parent)
    others = f" and {len(found) - 1} more" if len(found) > 1 else ""
    text = (
        f"the checkpoint {path!r} belongs to a model with RegBN (`{found[0]}`{others}), and this {name} has none, so "
        "that its weights alone would be another model. "
    )
    if beside:
        text += (
            f"A {RECIPE_FILE} lies beside it: load_regbn(model, {str(file.parent)!r}) puts RegBN in and loads both. "
        )
    else:
        text += (
            "Write a factory: `load_regbn(model, folder)` for a folder of save_regbn, or for a state dict by itself "
            "`model = regbnify(build(), rules, example)` with the rules of then, and model.load_state_dict. "
        )
    raise ModelNotLoadedError(text + "Give a factory that returns this model as MODEL, without --checkpoint")


def _read_checkpoint(path: str) -> Mapping[str, Any]:
    """The state dict in a file. Raises `ModelNotLoadedError`."""
    import pickle

    import torch

    content: Any
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelNotLoadedError(
            f"the checkpoint {path!r} holds more than weights{_refused(error)}, or is not a checkpoint; save the state "
            "dict alone: torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:
        raise ModelNotLoadedError(f"the checkpoint {path!r} cannot be read: {cause_text(error)}") from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise ModelNotLoadedError(f"the checkpoint {path!r} holds a {type(content).__name__}, not a state dict")
    return content


def _as_named_now(model: nn.Module, content: Mapping[str, Any]) -> dict[str, Any]:
    """The weights under the names that the model has for them, all of those of tied ones."""
    from .._checkpoint._names import by_own_names, tied

    known = set(model.state_dict())
    found = dict(content)
    if not found.keys() <= known and hasattr(type(model), "from_pretrained"):
        found = by_own_names(model, found) or found
    for names in tied(model):
        there = next((name for name in names if name in found), None)
        if there is not None:
            found.update({name: found[there] for name in names if name not in found})
    return found


def _from_pretrained(model: nn.Module, error: BaseException) -> str:
    """For a model of transformers whose names differ from those of its file: what reads such a file."""
    if not hasattr(type(model), "from_pretrained") or "key(s) in state_dict" not in str(error):
        return ""
    name = type(model).__name__
    return (
        "\nFiles of transformers may have names of an older version, or tensors that it joins; "
        f"`{name}.from_pretrained(folder)` reads them. Write `def build(): return {name}.from_pretrained('FOLDER')` in "
        "a file and give `that_file.py:build` as MODEL, without --checkpoint"
    )


def _refused(error: BaseException) -> str:
    """The object that torch would not load, by its name; its advice to load it all the same is not passed on."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" (`{named[1]}`)" if named else ""


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.sep in place or os.path.isfile(place)


def _import_file(place: str, form: str) -> ModuleType:
    path = Path(place)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelNotLoadedError(f"the file {place!r} {what} (looked in {os.getcwd()!r}); {form}")
    # As for `python file.py`, the modules beside the file can be imported.
    sys.path.insert(0, str(path.resolve().parent))
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"_user_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ModelNotLoadedError(f"{place!r} is not a Python file; {form}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ModelNotLoadedError(f"importing {place!r} failed: {cause_text(error)}") from error
    return module


def _import_name(place: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as for `python -m`
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(error.name + ".")):
            raise ModelNotLoadedError(
                f"there is no module {place!r} (looked in {os.getcwd()!r} and the installed packages); {_FORM}"
            ) from error
        raise ModelNotLoadedError(f"importing {place!r} failed: {cause_text(error)}") from error
    except (Exception, SystemExit) as error:
        raise ModelNotLoadedError(f"importing {place!r} failed: {cause_text(error)}") from error


def _attribute(module: ModuleType, name: str, place: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            candidates = [key for key, item in vars(value).items() if callable(item) and not key.startswith("_")]
            hint = did_you_mean(part, candidates) or f" (it has {listing(candidates)})"
            raise ModelNotLoadedError(f"{place!r} has no `{part}`{hint}")
        value = getattr(value, part)
    return value


def _call(target: Any, spec: str, arguments: Mapping[str, Any] | tuple[Any, ...] = ()) -> Any:
    from torch import nn

    if isinstance(target, nn.Module):
        return target
    if not callable(target):
        raise ModelNotLoadedError(f"{spec!r} is a {type(target).__name__}, not a function or class; {_FORM}")
    return _called(target, spec, "building" if isinstance(target, type) else "the factory", arguments)


def _called(target: Any, spec: str, what: str, arguments: Mapping[str, Any] | tuple[Any, ...]) -> Any:
    try:
        return target(**arguments) if isinstance(arguments, Mapping) else target(*arguments)
    except (Exception, SystemExit) as error:
        remedy = ""
        if isinstance(error, TypeError) and "argument" in str(error):
            given = "without arguments" if not arguments else f"with {arguments!r}"
            remedy = (
                f"; it was called {given}: pass others with --model-args JSON, or write a function that passes them"
            )
        raise ModelNotLoadedError(f"{what} {spec!r} failed: {cause_text(error)}{remedy}") from error


def _model_of(made: Any, spec: str) -> tuple[nn.Module, Any]:
    from torch import nn

    inputs = None
    if isinstance(made, tuple) and len(made) == 2:
        made, inputs = made
    if isinstance(made, nn.Module):
        return made, inputs
    if isinstance(made, type) and issubclass(made, nn.Module):
        raise ModelNotLoadedError(f"the factory {spec!r} returns the class {made.__name__}; return a model of it")
    found = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
    raise ModelNotLoadedError(
        f"the factory {spec!r} must return a torch.nn.Module, or a pair of model and example inputs; it returns {found}"
    )
