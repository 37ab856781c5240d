"""The RegBN behind a wrapper of an adapter library, which trains a copy of it (PEFT's `modules_to_save`)."""

from __future__ import annotations

from typing import Any

from torch import nn

from .nn import RegBN


def regbn_in(module: Any) -> RegBN | None:
    """The RegBN that a call of the module runs: itself, or the copy that is active in its wrapper; None for others."""
    while not isinstance(module, RegBN):
        if not is_wrapper(module):
            return None
        active = [] if module.disable_adapters else module.active_adapters
        name = next((name for name in active if name in module.modules_to_save), None)
        module = module.original_module if name is None else module.modules_to_save[name]
    return module


def is_wrapper(module: Any) -> bool:
    """Whether this holds a module and trained copies of it, by what PEFT's wrapper has."""
    return (
        isinstance(module, nn.Module)
        and isinstance(module._modules.get("modules_to_save"), nn.ModuleDict)
        and module._modules.get("original_module") is not None
        and hasattr(type(module), "active_adapters")
    )
