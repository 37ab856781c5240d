"""Run a model without leaving a trace: buffers, modes, stashed attributes and random numbers are put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

#: Every trial run starts from this seed, so that dropout draws the same numbers in each of them.
SEED = 20231210


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore buffers, `training` flags and plain attributes of every submodule, whatever happens inside.

    Parameters are not copied: a forward does not write to them, and they may be large. Attributes are restored by
    reference, so that a module which stashes its activations does not keep ours.
    """
    attributes = [(module, dict(module.__dict__)) for module in model.modules()]
    # Registries (hooks, buffers, children) are changed in place: `transformers` installs hooks in the first forward.
    registries = [
        (value, dict(value))
        for module, saved in attributes
        for value in saved.values()
        if isinstance(value, dict) and value is not module._parameters
    ]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if buffer.device.type != "meta"]
    try:
        yield
    finally:
        for module, saved in attributes:
            module.__dict__.clear()
            module.__dict__.update(saved)
        for registry, content in registries:
            if list(registry) != list(content) or any(registry[key] is not content[key] for key in content):
                registry.clear()
                registry.update(content)
        with torch.no_grad():
            for buffer, value in values:
                if buffer.shape == value.shape:
                    buffer.copy_(value)


@contextmanager
def seeded(seed: int = SEED) -> Iterator[None]:
    """Draw from a fixed seed inside, and restore the random state of every device in use after."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if in_use else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
