"""Norms of a checkpoint that a RegBN does not have so: those that are off here, and those of another place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def of_another_place(state_dict: dict[str, Any], norms: Mapping[str, nn.Module]) -> Iterator[str]:
    """An error where norms of a checkpoint are of other axes than those that are here. Their entries are exchanged for
    own ones, of which torch then says nothing."""
    strange: list[str] = []
    for start, norm in norms.items():
        own = dict((*norm.named_parameters(), *norm.named_buffers()))
        given = {key.removeprefix(start): value for key, value in state_dict.items() if key.startswith(start)}
        other = [name for name in given if name in own and given[name].shape != own[name].shape]
        if given and not isinstance(norm, nn.Identity) and ("running_mean" in given) != ("running_mean" in own):
            other = [next(iter(given)), *other]
        if other:
            strange += [start + other[0]]
            for name in given:
                state_dict.pop(start + name)
            state_dict.update({start + name: tensor for name, tensor in own.items()})
    if strange:
        keys = ", ".join(f"`{key}`" for key in strange)
        yield (
            f"{keys}: the checkpoint's RegBN stood where f or g has other axes than "
            "here, in front of a flatten for example. To have it there in a model that regbnify rewrites, name the "
            "layers that make both sides in the rule: `pair: {f: module:..., g: module:...}`"
        )


def leave_out(state_dict: dict[str, Any], start: str, norm: nn.Module) -> Iterator[str]:
    """Take entries that a norm does not have out of a checkpoint; an error where they took part in training."""
    own = {name for name, _ in (*norm.named_parameters(), *norm.named_buffers())}
    strange = [key for key in state_dict if key.startswith(start) and key[len(start) :] not in own]
    taken = {key: state_dict.pop(key) for key in strange}
    trained = [key for key, value in taken.items() if not value.is_meta and _has_moved(key, value)]
    if trained:
        switch = "normalize_output=True" if start.endswith("_out.") else "normalize_input=True"
        options = [switch] if isinstance(norm, nn.Identity) else []
        if any(key.endswith(("weight", "bias")) for key in strange):
            options.append("affine=True")
        yield (
            f"`{trained[0]}` was trained, and this RegBN does not have it: give it {' and '.join(options)}, or take "
            f"`{start}*` out of the checkpoint"
        )


def _has_moved(key: str, value: Tensor) -> bool:
    return bool((value != (1.0 if key.endswith(("weight", "running_var")) else 0.0)).any())
