"""Parameters and buffers on the meta device get the values of a folder, each tensor once, however many names it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from .._errors import RecipeError

_Slot = tuple[dict[str, Tensor | None], str]


def filling(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> Callable[[], None]:
    """What puts `weights` in the place of tensors without values; nothing is changed before it is called.

    Raises:
        RecipeError: where a tensor on the meta device is not among the weights (a buffer that is not saved).
    """
    slots: dict[int, list[_Slot]] = {}
    tensors: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    names: dict[int, str] = {}
    for name, tensor, slot in _empty(model):
        slots.setdefault(id(tensor), []).append(slot)
        tensors[id(tensor)] = tensor
        names.setdefault(id(tensor), name)
        if name in weights:
            values.setdefault(id(tensor), weights[name])
    left = [names[key] for key in tensors if key not in values]
    if left:
        raise RecipeError(
            f"{folder} has no values for {', '.join(left[:6])}{' ...' if len(left) > 6 else ''}, which "
            f"{'is' if len(left) == 1 else 'are'} on the meta device; nothing was changed. Buffers that are not saved "
            "are computed by the constructor: create the model under accelerate's init_empty_weights, which leaves "
            "buffers on their device, with from_pretrained, or on the CPU."
        )

    def fill() -> None:
        for key, tensor in tensors.items():
            value = values[key].to(tensor.dtype)
            made = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
            for registry, name in slots[key]:
                registry[name] = made

    return fill


def _empty(model: nn.Module) -> Iterator[tuple[str, Tensor, _Slot]]:
    """Each tensor on the meta device, by each of its names, with where its module holds it."""
    for path, module in model.named_modules(remove_duplicate=False):
        for registry in (module._parameters, module._buffers):
            for name, tensor in registry.items():
                if tensor is not None and tensor.is_meta:
                    yield (f"{path}.{name}" if path else name), tensor, (registry, name)
