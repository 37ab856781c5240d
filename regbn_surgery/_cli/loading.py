"""Gets a model from what the command line names: `package.module:factory`, `path/to/file.py:factory`, a class."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .._errors import RegBNError
from .._rules.problems import did_you_mean, listing
from .output import user_line

if TYPE_CHECKING:
    from torch import nn

_FORM = (
    "write `package.module:factory` or `path/to/file.py:factory`; the factory returns a model, or a model and inputs"
)


class ModelNotLoadedError(RegBNError):
    """The command line names a model that cannot be had: no such file or name, or its code fails."""


def load_model(spec: str) -> tuple[nn.Module, Any]:
    """Import and call what `spec` names. Returns the model and its example inputs (None where it gives none).

    Runs the user's code. Raises `ModelNotLoadedError` with the file and line where that code failed.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise ModelNotLoadedError(f"{spec!r} does not say where the model is: {_FORM}")
    module = _import_file(place) if _is_file(place) else _import_name(place)
    return _model_of(_call(_attribute(module, name, place), spec), spec)


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.sep in place or os.path.isfile(place)


def _import_file(place: str) -> ModuleType:
    path = Path(place)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelNotLoadedError(f"the model file {place!r} {what} (looked in {os.getcwd()!r}); {_FORM}")
    # As for `python file.py`, the modules beside the file can be imported.
    sys.path.insert(0, str(path.resolve().parent))
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"_user_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ModelNotLoadedError(f"{place!r} is no Python file; {_FORM}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ModelNotLoadedError(f"importing {place!r} failed: {_cause(error)}") from error
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
        raise ModelNotLoadedError(f"importing {place!r} failed: {_cause(error)}") from error
    except (Exception, SystemExit) as error:
        raise ModelNotLoadedError(f"importing {place!r} failed: {_cause(error)}") from error


def _attribute(module: ModuleType, name: str, place: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            candidates = [key for key, item in vars(value).items() if callable(item) and not key.startswith("_")]
            hint = did_you_mean(part, candidates) or f" (it has {listing(candidates)})"
            raise ModelNotLoadedError(f"{place!r} has no `{part}`{hint}")
        value = getattr(value, part)
    return value


def _call(target: Any, spec: str) -> Any:
    from torch import nn

    if isinstance(target, nn.Module):
        return target
    if not callable(target):
        raise ModelNotLoadedError(f"{spec!r} is a {type(target).__name__}, not a function or class; {_FORM}")
    try:
        return target()
    except (Exception, SystemExit) as error:
        what = "building" if isinstance(target, type) else "the factory"
        remedy = ""
        if isinstance(error, TypeError) and "argument" in str(error):
            remedy = "; it is called without arguments, so write a function that passes them"
        raise ModelNotLoadedError(f"{what} {spec!r} failed: {_cause(error)}{remedy}") from error


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


def _cause(error: BaseException) -> str:
    """`ValueError: too small (model.py:12)`: the error with the user's own line, the deepest outside libraries."""
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, SyntaxError):
        return text
    line = user_line(error)
    return f"{text} ({line})" if line else text
