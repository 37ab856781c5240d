"""Copy a model that `copy.deepcopy` refuses because it keeps results of its forward on itself.

Losses that are computed from `model.last_features`, and the old `weight_norm`, keep tensors with a history of autograd
as attributes. A copy holds their values, without the history: that belongs to the call of the original.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Model = TypeVar("Model", bound=nn.Module)


class _WithoutHistory(TorchFunctionMode):
    """Answer `copy.deepcopy` of a tensor that is a result by its values alone."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def deep_copy(model: Model) -> Model:
    """`copy.deepcopy(model)`, with results of its forward copied without their history."""
    with _WithoutHistory():
        return copy.deepcopy(model)
