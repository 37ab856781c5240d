"""Running a zoo model the way a user would, and comparing what comes out, whatever its structure."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

SEED = 7


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in an output: through mappings (`ModelOutput` included), sequences and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from tensors_of(getattr(value, entry.name))


def call(model: nn.Module, example: Any) -> Any:
    """Call a model on example inputs: a dict is keyword arguments, a tuple positional ones, `Inputs` both."""
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, tuple):
        return model(*example)
    if isinstance(example, torch.Tensor):
        return model(example)
    return model(*example.args, **example.kwargs)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy that can be trained: torch gives copies of scripted modules parameters that are no leaves."""
    with torch.no_grad():
        twin = copy.deepcopy(model)
    for old, new in zip(model.parameters(), twin.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    return twin


def run(model: nn.Module, example: Any, *, train: bool) -> list[torch.Tensor]:
    """The output tensors of one seeded call on copies, so that neither the model nor the inputs change."""
    model, example = copied(model), copy.deepcopy(example)
    model.train(train)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SEED)
        return list(tensors_of(call(model, example)))


def training_step(model: nn.Module, example: Any) -> None:
    """One step of gradient descent on the mean square of whatever floating tensors come out."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        outputs = [out for out in tensors_of(call(model, example)) if out.requires_grad]
    loss = torch.stack([out.square().mean() for out in outputs]).mean()
    loss.backward()
    optimizer.step()
