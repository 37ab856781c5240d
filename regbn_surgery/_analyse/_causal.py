"""Which modalities are causal streams: what a model predicts at one of their positions sees no later one.

A decoder trained by teacher forcing is one, and what pools over its positions would tell it the answers. Found by
running the model as it is: once, with the last position of an input changed, and with the last but one changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _tree
from .._inputs import Inputs, named_tensors, shared_axis
from .._state import has_no_values, preserved, seeded
from .._types import Inspection

#: What a model's own code raises on tokens that it does not expect at this place.
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
#: A difference below this share of a tensor's largest value is rounding.
_ROUNDING = 1e-5


def causal_modalities(
    model: nn.Module, inputs: Inputs, inspection: Inspection, *, writes_parameters: bool = False
) -> frozenset[str]:
    """The modalities that meet others as sequences and are causal.

    A modality is causal if an output has an axis on which a change of its last position shows first at one index,
    a change of the position before shows first at the index before that, and reaches the later one, too.

    Nothing is said of a model without weights, and of an input that the model refuses to see changed.
    """
    wanted = _sequences(inspection)
    if not wanted or any(has_no_values(tensor) for tensor in (*model.parameters(), *model.buffers())):
        return frozenset()
    runner = _Runner(model, inputs, writes_parameters)
    return frozenset(
        modality.name
        for modality in inspection.modalities
        if modality.name in wanted and any(runner.is_causal(name) for name in modality.inputs)
    )


def _sequences(inspection: Inspection) -> set[str]:
    """Modalities that some site takes with their positions."""
    sides = (side for point in inspection.fusion_points for site in point.sites for side in site.sides)
    return {name for side in sides if side.layout.sequence for name in side.home}


class _Runner:
    """Runs the model on changed copies of its inputs."""

    def __init__(self, model: nn.Module, inputs: Inputs, writes_parameters: bool) -> None:
        self.model = model
        self.inputs = inputs
        self.writes = writes_parameters
        shared = shared_axis(model, inputs)
        self.batch_dim = shared[0] if shared is not None else 0
        self.tensors = dict(named_tensors(model, inputs))
        self._plain: list[Tensor] | None = None

    def is_causal(self, name: str) -> bool:
        dim = self._positions(self.tensors.get(name))
        if dim is None:
            return False
        last, before = self._changed(name, dim, -1), self._changed(name, dim, -2)
        if last is None or before is None:
            return False
        length = self.tensors[name].shape[dim]
        together = zip(self.plain, last, before, strict=False)
        return any(_shows_order(*outputs, self.batch_dim, length) for outputs in together)

    def _positions(self, tensor: Tensor | None) -> int | None:
        """The axis of an input that counts positions: of token ids `[B, L]`, or of `[B, L, C]`."""
        if tensor is None or tensor.dtype == torch.bool:
            return None
        if tensor.dim() != (3 if tensor.is_floating_point() else 2):
            return None
        dim = 1 - self.batch_dim
        return dim if tensor.shape[dim] >= 2 else None

    @property
    def plain(self) -> list[Tensor]:
        if self._plain is None:
            self._plain = self._run(self.inputs)
        return self._plain

    def _changed(self, name: str, dim: int, position: int) -> list[Tensor] | None:
        """The outputs with another value at one position; None where the model refuses all that are tried."""
        tensor = self.tensors[name]
        for value in _other_values(tensor.select(dim, position), tensor):
            changed = tensor.detach().clone()
            changed.select(dim, position).copy_(value)
            try:
                return self._run(_with(self.inputs, tensor, changed))
            except _REFUSALS:
                continue
        return None

    def _run(self, inputs: Inputs) -> list[Tensor]:
        with preserved(self.model, parameters=self.writes), seeded(), torch.no_grad():
            self.model.eval()
            args, kwargs = _tree.cloned((inputs.args, inputs.kwargs))
            return list(_tensors(self.model(*args, **kwargs)))


def _other_values(old: Tensor, tensor: Tensor) -> Iterator[Tensor]:
    """Values to put in place of `old`: for features anything, for tokens others of the example."""
    if tensor.is_floating_point():
        yield old * -0.5 + 1.0
        return
    # Never beyond what the example has: an index outside a table ends the work of a GPU for good.
    low, high = tensor.min(), tensor.max()
    if bool(low == high):
        yield old - 1 if int(low) > 0 else old + 1
        return
    yield torch.where(old > low, old - 1, old + 1)
    swapped = old.roll(1, 0)  # tokens of another sample
    if bool((swapped != old).any()):
        yield swapped
    yield torch.where(old < high, old + 1, old - 1)


def _with(inputs: Inputs, old: Tensor, new: Tensor) -> Inputs:
    args, kwargs = _tree.rebuild((inputs.args, inputs.kwargs), lambda _, leaf: new if leaf is old else leaf)
    return Inputs(*args, **kwargs)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Floating tensors of an output, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)


def _shows_order(plain: Tensor, last: Tensor, before: Tensor, batch_dim: int, length: int) -> bool:
    if not plain.shape == last.shape == before.shape:
        return False
    for dim, size in enumerate(plain.shape):
        if dim == batch_dim or size < length:
            continue
        late, early = _where(plain, last, dim), _where(plain, before, dim)
        if late and early and min(early) == min(late) - 1 and min(late) in early:
            return True
    return False


def _where(plain: Tensor, other: Tensor, dim: int) -> set[int]:
    """Indices along `dim` at which two outputs differ."""
    difference = (other.float() - plain.float()).abs()
    limit = _ROUNDING * float(plain.float().abs().amax()) if plain.numel() else 0.0
    flat = (difference > limit).movedim(dim, 0).flatten(1).any(dim=1)
    return set(flat.nonzero().flatten().tolist())
