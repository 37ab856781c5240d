"""What backward passes that have not run yet need of the running projection, kept safe from the next step.

In evaluation f - g W is formed from the very buffer that a training step changes in place. A backward pass over an
evaluation and a later training forward would find the wrong W (and torch would refuse it). A copy at every evaluation
would cost as much as the product itself, so the copy is made by who writes, and only if somebody still waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor

from ._linalg import runs_plainly


class _Kept:
    """A tensor that autograd has saved: a view of a buffer until that is written to, then a copy."""

    def __init__(self, tensor: Tensor, buffer: Tensor) -> None:
        self.tensor, self.buffer, self.version = tensor, buffer, buffer._version

    def get(self) -> Tensor:
        if self.buffer is not None and self.buffer._version != self.version:
            raise RuntimeError(
                "the running projection of RegBN was changed in place, by other code than a training step, between "
                "an evaluation forward and its backward"
            )
        return self.tensor

    def copy(self) -> None:
        self.get()
        self.tensor, self.buffer = self.tensor.clone(), None  # type: ignore[assignment]


class Readers:
    """The saved views of one module's buffers; they go when the graph that saved them goes."""

    def __init__(self) -> None:
        self._waiting: WeakSet[_Kept] = WeakSet()
        self._any = False  # a plain value, which every compiler of torch can ask

    def __reduce__(self) -> tuple[type[Readers], tuple[()]]:
        return Readers, ()  # a copy has no readers yet

    @contextmanager
    def reading(self, buffers: tuple[Tensor, ...]) -> Iterator[None]:
        """Let what autograd saves of `buffers` within the `with` be what `before_writing` takes care of."""
        memory = {buffer.untyped_storage().data_ptr(): buffer for buffer in buffers}

        def pack(saved: Tensor) -> Tensor | _Kept:
            buffer = memory.get(saved.untyped_storage().data_ptr())
            if buffer is None:
                return saved
            kept = _Kept(saved.detach(), buffer)
            self._waiting.add(kept)
            self._any = True
            return kept

        def unpack(saved: Tensor | _Kept) -> Tensor:
            return saved.get() if isinstance(saved, _Kept) else saved

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield

    def before_writing(self) -> None:
        """Copy what is still waited for; to be called before any of the buffers is changed in place."""
        if not self._any:
            return
        for kept in list(self._waiting):
            kept.copy()
        self._waiting.clear()
        self._any = False


def is_read_by_autograd(x: Tensor) -> bool:
    """Whether a product with `x` saves its other factor for a backward pass."""
    return torch.is_grad_enabled() and x.requires_grad


def may_hook(buffer: Tensor) -> bool:
    """Whether saved tensors can be looked after here: transforms and compilers keep theirs in their own way."""
    return type(buffer) is Tensor and buffer.device.type != "meta" and runs_plainly()
