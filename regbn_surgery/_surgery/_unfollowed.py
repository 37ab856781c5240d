"""Runs that nobody asked for, in the middle of a call that a tool of torch follows: it must see nothing of them.

`torch.jit.trace` records every operation, and gives sizes as tensors; `torch.func.grad` hands out tensors that are
wrapped, and allows no hooks on what autograd saves. A trial computes with plain tensors of the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from .. import _tree


@contextmanager
def unseen_by_jit() -> Iterator[None]:
    """`torch.jit.trace` records nothing of what runs inside, where sizes are numbers again."""
    states: Any = torch._C
    tracer = states._get_tracing_state()
    if tracer is None:
        yield
        return
    states._set_tracing_state(None)
    try:
        yield
    finally:
        states._set_tracing_state(tracer)


@contextmanager
def outside_transforms(host: nn.Module, given: Any) -> Iterator[Any]:
    """Gives the arguments without what `torch.func.grad` and its kind wrap them in, as `host` is inside, too.

    To be entered inside `preserved`, which puts the parameters of the host back. Under `vmap` nothing is changed: what
    its tensors hold is of another shape.
    """
    if not _in_transform() or any(_is_batched(tensor) for tensor in (*_tree.tensors(given), *_tensors_of(host))):
        yield given
        return
    for module in host.modules():
        for registry in (module._parameters, module._buffers):
            for name, tensor in registry.items():
                if tensor is not None:
                    registry[name] = _plain(tensor)
    plain = _tree.rebuild(given, lambda _, leaf: _plain(leaf) if isinstance(leaf, Tensor) else leaf)
    with temporarily_clear_interpreter_stack():
        yield plain


def saved_as_they_are() -> AbstractContextManager[None]:
    """A checkpoint around us counts what is saved for the backward pass; what runs inside is none of its business.

    Transforms refuse such hooks, and so checkpoints.
    """
    if _in_transform():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


def _in_transform() -> bool:
    return torch._C._functorch.maybe_current_level() is not None


def _tensors_of(host: nn.Module) -> Iterator[Tensor]:
    yield from host.parameters()
    yield from host.buffers()


def _is_batched(tensor: Tensor) -> bool:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False


def _plain(tensor: Any) -> Any:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor
