"""Modules that are one call in a graph, and not looked into: which they are, and what the graph keeps of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ._source import kind_of_module

#: Whether the module at a path is such a one.
LeafRule = Callable[[nn.Module, str], bool]
_TRAITS = ("num_features", "normalized_shape", "in_channels", "out_channels", "in_features",
           "out_features", "embedding_dim", "p", "hidden_size", "embed_dim", "dim")  # fmt: skip


def is_torch_leaf(module: nn.Module, path: str) -> bool:
    """Modules of torch itself, and a RegBN that the author has placed, are not looked into; containers are."""
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return False
    if isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule":
        return True
    if kind_of_module(module) == "RegBN":
        return True
    home = type(module).__module__
    return home.startswith(("torch.nn.", "torch.ao.nn.")) and type(module) is not nn.Module


def traits_of(module: nn.Module) -> dict[str, Any]:
    """The sizes by which axes are told, and whether it has parameters."""
    traits = {name: getattr(module, name) for name in _TRAITS if hasattr(module, name)}
    flags = [m.batch_first for m in module.modules() if isinstance(getattr(m, "batch_first", None), bool)]
    if flags:  # torch's transformer layers keep the flag in their attention
        traits["batch_first"] = flags[0]
    traits["parametrised"] = next(module.parameters(), None) is not None
    return traits
