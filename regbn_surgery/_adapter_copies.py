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
        module = _active(module)
    return module


def _active(wrapper: Any) -> Any:
    """The module that a call of the wrapper runs."""
    active = [] if wrapper.disable_adapters else wrapper.active_adapters
    name = next((name for name in active if name in wrapper.modules_to_save), None)
    return wrapper.original_module if name is None else wrapper.modules_to_save[name]


def regbns_in(model: nn.Module) -> dict[str, RegBN]:
    """Every RegBN that a call of the model may run, by its path (that of its site, where it has one)."""
    found: dict[str, RegBN] = {}
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():  # a wrapper comes before what it holds
        regbn = None if module in inside else regbn_in(module)
        if regbn is not None:
            inside.update(module.modules())
            found[path.removesuffix(".regbn")] = regbn
        elif is_wrapper(module):  # of something around a RegBN: only one of its copies runs
            runs = set(_active(module).modules())
            inside.update(other for other in module.modules() if other not in runs and other is not module)
    return found


def is_wrapper(module: Any) -> bool:
    """Whether this holds a module and trained copies of it, by what PEFT's wrapper has."""
    if not (isinstance(module, nn.Module) and hasattr(type(module), "active_adapters")):
        return False
    children = dict(module.named_children())  # `_modules` of a scripted module is no dict
    return isinstance(children.get("modules_to_save"), nn.ModuleDict) and "original_module" in children
