"""Adapters of PEFT hold what PEFT knows of; RegBN's state belongs to them only where the user names it."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from .._codes import coded
from .._errors import RegBNWarning
from ._site import RegBNSite

_TOLD = "_regbn_told_adapters"
#: What PEFT puts around a module of `modules_to_save`.
_WRAPPER = "ModulesToSaveWrapper"


def watch_adapters(root: nn.Module) -> None:
    """Say so, once, where adapters of the model are saved without RegBN's state."""
    root.register_state_dict_post_hook(_tell_adapters)  # type: ignore[no-untyped-call]


def watch_adapters_no_more(root: nn.Module) -> None:
    """Take the hook of `watch_adapters` off."""
    for key, hook in list(root._state_dict_hooks.items()):
        if hook is _tell_adapters:
            del root._state_dict_hooks[key]
    root.__dict__.pop(_TOLD, None)


def _tell_adapters(root: nn.Module, state: Any, prefix: str, _: Any) -> None:
    if not prefix or "peft_config" not in root.__dict__ or _TOLD in root.__dict__:
        return  # the state of the model itself, which is whole
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
