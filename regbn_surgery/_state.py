"""Run a model without leaving a trace: buffers, modes, stashed attributes and random numbers are put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

#: Every trial run starts from this seed, so that dropout draws the same numbers in each of them.
SEED = 20231210
#: How deep containers in attributes are looked into.
_DEPTH = 3


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore buffers, `training` flags and plain attributes of every submodule, whatever happens inside.

    Parameters are not copied, as they may be large and a forward does not write to them; the tables of an `Embedding`
    with `max_norm` are the exception. Attributes are restored by reference, and so is what their lists, sets and
    dicts hold, so that a module which stashes its activations does not keep ours.
    """
    attributes = [(module, dict(module.__dict__)) for module in model.modules()]
    # Registries (hooks, buffers, children) are changed in place: `transformers` installs hooks in the first forward.
    containers = [
        kept
        for module, saved in attributes
        for value in saved.values()
        if value is not module._parameters
        for kept in _contents(value)
    ]
    written = (*model.buffers(), *_renormalised(model))
    values = [(tensor, tensor.detach().clone()) for tensor in written if tensor.device.type != "meta"]
    try:
        yield
    finally:
        for module, saved in attributes:
            module.__dict__.clear()
            module.__dict__.update(saved)
        for container, content in containers:
            _refill(container, content)
        with torch.no_grad():
            for tensor, value in values:
                if tensor.shape == value.shape:
                    tensor.copy_(value)


def _contents(value: Any, depth: int = 0) -> Iterator[tuple[Any, list[Any]]]:
    """The mutable containers in an attribute, each with what it holds now."""
    if depth > _DEPTH or not isinstance(value, dict | list | set | deque):
        return
    yield value, list(value.items() if isinstance(value, dict) else value)
    for item in value.values() if isinstance(value, dict) else value:
        yield from _contents(item, depth + 1)


def _refill(container: Any, content: list[Any]) -> None:
    now = list(container.items() if isinstance(container, dict) else container)
    if len(now) == len(content) and all(_is_same(a, b) for a, b in zip(now, content, strict=True)):
        return
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(content)


def _is_same(a: Any, b: Any) -> bool:
    pairs = zip(a, b, strict=True) if type(a) is type(b) is tuple and len(a) == len(b) else ((a, b),)
    return all(x is y for x, y in pairs)


def _renormalised(model: nn.Module) -> Iterator[torch.Tensor]:
    """Tables that `max_norm` lets a forward rescale in place."""
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            yield module.weight


@contextmanager
def seeded(seed: int = SEED) -> Iterator[None]:
    """Draw from a fixed seed inside, and restore the random state of every device in use after."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if in_use else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
