"""Adapters of PEFT hold what PEFT knows of; RegBN's state belongs to them only where the user names it."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from .._codes import coded
from .._errors import RegBNWarning
from ._guard import RECORD
from ._site import RegBNSite

_TOLD = "_regbn_told_adapters"
#: What PEFT puts around a module of `modules_to_save`.
_WRAPPER = "ModulesToSaveWrapper"


#: How the names of a model with adapters begin, where PEFT asks for its state to pick the adapters out of it.
_ADAPTED = "base_model.model."


def watch_adapters(root: nn.Module) -> None:
    """Say so, once, where adapters of the model are saved without RegBN's state; adapters of its parts as well."""
    around = {""}
    for path, module in root.named_modules():
        while isinstance(module, RegBNSite) and path:
            path = path.rpartition(".")[0]
            around.add(path)
    for path in around:
        root.get_submodule(path).register_state_dict_post_hook(_tell_adapters)  # type: ignore[no-untyped-call]


def watch_adapters_no_more(root: nn.Module) -> None:
    """Take the hooks of `watch_adapters` off."""
    for module in root.modules():
        for key, hook in list(module._state_dict_hooks.items()):
            if hook is _tell_adapters:
                del module._state_dict_hooks[key]
        module.__dict__.pop(_TOLD, None)


def _tell_adapters(root: nn.Module, state: Any, prefix: str, _: Any) -> None:
    """`root`: the rewritten model, which may be a part of what has adapters, or the part of it that has them."""
    adapted = _ADAPTED in prefix if RECORD in root.__dict__ else prefix == _ADAPTED
    if not adapted or _TOLD in root.__dict__:
        return  # the state of the model itself, or of one around it, is whole
    left = [
        path
        for path, module in root.named_modules()
        if isinstance(module, RegBNSite) and type(module.regbn).__name__ != _WRAPPER
    ]
    if not left:
        return
    root.__dict__[_TOLD] = True
    names = sorted({f"{path.rpartition('.')[2]}.regbn" for path in left})
    text = (
        f"The adapters of this {type(root).__name__} do not hold the state of RegBN ({', '.join(left)}): what PEFT "
        f"saves comes back with RegBN untrained. Make the adapters with `modules_to_save={names}` in their config; "
        "to keep what is trained now, call save_regbn(model.get_base_model(), folder) or save the whole state_dict."
    )
    warnings.warn(coded("RB406", text), RegBNWarning, stacklevel=3)
