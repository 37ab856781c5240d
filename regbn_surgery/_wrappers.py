"""The user's model in what a library has put around it: DDP, `torch.compile`, PEFT."""

from __future__ import annotations

from typing import Any

from torch import nn

#: Wrappers whose `forward` takes whatever comes, and where they hold the model that has the parameters.
_HELD_AS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "PeftModel": "get_base_model",
}


def inside_wrappers(model: nn.Module) -> nn.Module:
    """The module in the wrappers of a library around it whose `forward` names the inputs."""
    inner: Any = model
    while name := next((_HELD_AS[base.__name__] for base in type(inner).__mro__ if base.__name__ in _HELD_AS), None):
        held = getattr(inner, name)
        inner = held if isinstance(held, nn.Module) else held()
    found: nn.Module = inner
    return found
