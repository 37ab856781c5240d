"""Weights by the names of the model: transformers writes some under the names of their published checkpoints, and of
tied ones it writes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def by_own_names(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """`weights`, as `save_pretrained` of transformers wrote them, under the names that the state dict of the model has.

    None where that is not known of each of them, above all where the library has split or joined tensors: only
    `from_pretrained` makes these again.
    """
    written = names_as_written(model)
    if not set(weights) <= set(written.values()):
        return None
    return {name: weights[other] for name, other in written.items() if other in weights}


def names_as_written(model: nn.Module) -> dict[str, str]:
    """Under which name each tensor of the state dict is written, of those that are written as they are."""
    marks = {
        name: torch.empty_like(value, device="meta")
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
    }
    names = {id(mark): name for name, mark in marks.items()}
    written = {names[id(mark)]: name for name, mark in as_written(model, marks).items() if id(mark) in names}
    return written if len(set(written.values())) == len(written) else {}


def as_written(model: nn.Module, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`own` as `save_pretrained` of transformers 5 would write it; older ones change names alone."""
    try:
        from transformers import PreTrainedModel
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return own
    if not isinstance(model, PreTrainedModel):
        return own
    written: Mapping[str, Tensor] = revert_weight_conversion(model, dict(own))
    return written


def tied(model: nn.Module) -> list[list[str]]:
    """The names of each tensor of the state dict; most have one."""
    places: dict[Any, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            places.setdefault(_place(tensor, name), []).append(name)
    return list(places.values())


def _place(tensor: Tensor, name: str) -> Any:
    if tensor.is_meta:
        return id(tensor)
    if tensor.numel() == 0:
        return name
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), torch.typename(tensor))
