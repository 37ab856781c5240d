"""A rewritten model that saves itself as its library does: the recipe goes along, without anybody asking for it.

`save_pretrained`, which trainers call for their checkpoints, writes the weights, RegBN's among them. Without the recipe
beside them the folder would load as the original. So the root gets a class that writes both, and that says what
`from_pretrained` of the same class leaves out. A root that has to keep its very class writes by a method of its own.

A model that does not save itself is saved by a trainer, from its state dict: who asks for that is looked at.
"""

from __future__ import annotations

import copyreg
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn

from .._codes import coded
from .._errors import RegBNError
from .._trace._subclass import quiet_subclass
from .._user_code import warn_at_call
from ._adapters import OWN_ADAPTERS, tell_left_out
from ._classes import asks_its_class, original_class
from ._guard import RECORD

RECIPE_FILE = "regbn.json"
_SAVE, _LOAD = "save_pretrained", "from_pretrained"
_SAVES = "_regbn_saves_recipe"
_TOLD = "_regbn_told_part"


def save_recipe_too(root: nn.Module) -> None:
    """Let a rewritten model write its recipe wherever its own `save_pretrained` writes, or, where it has none, the
    Trainer of transformers and accelerate's `save_model`.

    Where it is a part of a model that is written, it says that nobody writes the recipe.
    """
    root.register_state_dict_post_hook(_tell_part)  # type: ignore[no-untyped-call]
    if not callable(getattr(root, _SAVE, None)) or getattr(type(root), _SAVES, False):
        return
    if _SAVE in root.__dict__ or asks_its_class(original_class(root)):
        root.__dict__[_SAVE] = _InstanceSave(root, root.__dict__.get(_SAVE))
    else:
        object.__setattr__(root, "__class__", _saving_class(type(root)))


def save_recipe_no_more(root: nn.Module) -> None:
    """Give back the class and the method that `save_recipe_too` found."""
    for key, hook in list(root._state_dict_hooks.items()):
        if hook is _tell_part:
            del root._state_dict_hooks[key]
    root.__dict__.pop(_TOLD, None)
    own = root.__dict__.get(_SAVE)
    if isinstance(own, _InstanceSave):
        del root.__dict__[_SAVE]
        if own.before is not None:
            root.__dict__[_SAVE] = own.before
    before = vars(type(root)).get(_SAVES)
    if before is not None:
        object.__setattr__(root, "__class__", before)


class _InstanceSave:
    """`save_pretrained` on an instance; `before` is what stood there, None where the class' serves."""

    def __init__(self, root: nn.Module, before: Callable[..., Any] | None) -> None:
        self.root = root
        self.before = before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        save = self.before or getattr(type(self.root), _SAVE).__get__(self.root)
        result = save(*args, **kwargs)
        _write_recipe(self.root, args, kwargs)
        return result


_classes: dict[Any, type[nn.Module]] = {}


def _saving_class(cls: Any) -> type[nn.Module]:
    if cls in _classes:
        return _classes[cls]
    original = getattr(cls, "_regbn_original_class", cls)

    @functools.wraps(getattr(cls, _SAVE))
    def save_pretrained(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = getattr(cls, _SAVE)(self, *args, **kwargs)
        _write_recipe(self, args, kwargs)
        return result

    def from_pretrained(_: type, *args: Any, **kwargs: Any) -> Any:
        made = getattr(original, _LOAD)(*args, **kwargs)
        _tell_original(original.__name__, args, kwargs)
        return made

    def reduce(self: nn.Module, protocol: Any) -> Any:
        make, args, *rest = cls.__reduce_ex__(self, protocol)
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]
            args = tuple(cls if given is type(self) else given for given in args)
        return (_make_saving, (make, args), *rest)

    body: dict[str, Any] = {
        _SAVE: save_pretrained,
        "__reduce_ex__": reduce,
        _SAVES: cls,
        "_regbn_original_class": original,
    }
    if hasattr(cls, _LOAD):
        body[_LOAD] = classmethod(from_pretrained)
    if hasattr(cls, "__deepcopy__"):

        def __deepcopy__(self: nn.Module, memo: dict[int, Any]) -> nn.Module:  # noqa: N807
            made: nn.Module = cls.__deepcopy__(self, memo)
            save_recipe_too(made)
            return made

        body["__deepcopy__"] = __deepcopy__
    return _classes.setdefault(cls, quiet_subclass(cls, body))


def _make_saving(make: Callable[..., nn.Module], args: tuple[Any, ...]) -> nn.Module:
    """What pickle calls: the module as its class would make it, with the class that saves the recipe."""
    made = make(*args)
    if not getattr(type(made), _SAVES, False):
        object.__setattr__(made, "__class__", _saving_class(type(made)))
    return made


def _write_recipe(root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Beside what `save_pretrained` has just saved."""
    folder = _folder(args, kwargs, "save_directory")
    if folder is None or RECORD not in root.__dict__ or not kwargs.get("is_main_process", True):
        return
    if getattr(root, OWN_ADAPTERS, False):
        tell_left_out(root)
    _write_into(folder, root)


def _write_into(folder: Path, root: nn.Module) -> None:
    """A recipe that cannot be written must not cost a checkpoint: it is a warning."""
    from .._checkpoint import Recipe

    try:
        recipe = Recipe.of(root)
        folder.mkdir(parents=True, exist_ok=True)
        recipe.write(folder / RECIPE_FILE)
    except (RegBNError, OSError) as error:
        text = f"The weights are written to {folder}, but RegBN's recipe ({RECIPE_FILE}) was not: {error}"
        warn_at_call(coded("RB404", text))


def _tell_part(root: nn.Module, state: Any, prefix: str, _: Any) -> None:  # pickles know it by this name
    """The state of a rewritten model is asked for: is it about to be saved, by itself or as a part of another one?"""
    if RECORD not in root.__dict__:
        return
    if not prefix:
        folder = None if callable(getattr(root, _SAVE, None)) else _folder_of_trainer()
        if folder is not None:
            _write_into(folder, root)
    elif _TOLD not in root.__dict__:
        _tell_of_part(root, prefix)


def _folder_of_trainer() -> Path | None:
    """Where a trainer is about to write the state dict that it asks for; None where nobody does, or another rank."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = _TRAINERS.get((frame.f_globals.get("__name__"), frame.f_code.co_name))
        if name is not None:
            given, trainer = frame.f_locals.get(name), frame.f_locals.get("self")
            writes = getattr(
                getattr(trainer, "args", trainer), "should_save", getattr(trainer, "is_main_process", True)
            )
            return Path(given) if writes and isinstance(given, str | os.PathLike) else None
        frame = frame.f_back
    return None


#: Who saves models that do not save themselves, and which of its variables is the folder.
_TRAINERS: dict[tuple[Any, str], str] = {
    ("transformers.trainer", "_save"): "output_dir",
    ("accelerate.accelerator", "save_model"): "save_directory",
}


def _tell_of_part(root: nn.Module, prefix: str) -> None:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != _SAVE:
        frame = frame.f_back
    parent = frame.f_locals.get("self") if frame is not None else None
    if not isinstance(parent, nn.Module) or RECORD in parent.__dict__ or type(parent).__module__.startswith("peft."):
        return
    root.__dict__[_TOLD] = True
    part, whole = prefix.rstrip("."), type(parent).__name__
    text = (
        f"The weights of this {whole} are saved with those of RegBN in `{part}`, but without RegBN's recipe: "
        f"{whole}.from_pretrained will give the original. Call regbnify on the {whole} itself, or save the part as "
        f"well: save_regbn(model.{part}, another_folder)."
    )
    warn_at_call(coded("RB412", text))


def _tell_original(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    folder = _folder(args, kwargs, "pretrained_model_name_or_path")
    if folder is not None and (folder / RECIPE_FILE).exists():
        what = f"{folder} holds RegBN's weights and its recipe ({RECIPE_FILE})"
        then = f"For the model with RegBN call load_regbn({name}.from_pretrained({str(folder)!r}), {str(folder)!r})."
    else:
        what = "its class is that of a rewritten model"
        then = "For a model with RegBN call regbnify, or load_regbn with a folder written by save_regbn."
    text = f"This {name} is the original model without RegBN, though {what}. {then}"
    warn_at_call(coded("RB405", text))


def _folder(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Path | None:
    given = args[0] if args else kwargs.get(name)
    return Path(given) if isinstance(given, str | os.PathLike) else None
