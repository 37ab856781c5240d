"""Does a model hold the values of a folder already, under other names? Only its values can tell: a config cannot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._names import as_written

_Key = tuple[tuple[int, ...], torch.dtype, bytes]
#: Values at the beginning of a tensor by which those that may be equal are found.
_FIRST = 16


def holds(model: nn.Module, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether `own`, tensors of the model by name, are those of a folder, `theirs`, each in the type it has now.

    Names do not count. Where the model's library splits or joins tensors as it writes them, they are compared as it
    would write them.
    """
    ignored: Iterable[str] = getattr(model, "_keys_to_ignore_on_save", None) or ()
    own = {name: tensor for name, tensor in own.items() if not any(re.search(each, name) for each in ignored)}
    if any(not isinstance(tensor, Tensor) or tensor.is_meta for tensor in own.values()):
        return False
    return _same(own.values(), theirs.values()) or _same(as_written(model, own).values(), theirs.values())


def _same(own: Iterable[Tensor], theirs: Iterable[Tensor]) -> bool:
    """Whether each tensor on either side is among those of the other side."""
    places: dict[_Key, list[_Group]] = {}
    for tensor in own:
        groups = places.setdefault(_key(tensor, tensor.dtype), [])
        if not any(_equal(tensor, group.value) for group in groups):
            groups.append(_Group(tensor))
    types = {key[1] for key in places}
    for other in theirs:
        known = False
        for dtype in types:
            if dtype == other.dtype or (dtype.is_floating_point and other.is_floating_point()):
                for group in places.get(_key(other, dtype), ()):
                    if _equal(group.value, other.to(dtype)):
                        group.seen = known = True
        if not known:
            return False
    return all(group.seen for groups in places.values() for group in groups)


@dataclass
class _Group:
    """Tensors of one value, by one of them; whether the folder has it."""

    value: Tensor
    seen: bool = False


def _key(tensor: Tensor, dtype: torch.dtype) -> _Key:
    return tuple(tensor.shape), dtype, bytes(_bits(tensor.reshape(-1)[:_FIRST].to(dtype)).tolist())


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(_bits(one), _bits(other.to(one.device)))


def _bits(tensor: Tensor) -> Tensor:
    """The values as bytes, by which NaN equals NaN."""
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)
