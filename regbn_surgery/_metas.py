"""Run a model without weights on the meta device itself, in a third of the time that torch's fake tensors take.

Meta tensors know no device but their own and do not mix with real ones. A function mode makes up for that, for most
models: integer inputs and what is computed from them stay real, and become meta tensors where they meet one. It also
remembers what came of a call, since torch works out most shapes in Python, and models repeat their layers. What it
cannot do fails, and is for `_fakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CPU, _META = torch.device("cpu"), torch.device("meta")


class MetaRunError(RuntimeError):
    """The call at hand takes values, or goes by the device; a run with fakes tells what becomes of it."""


class OnMeta(TorchFunctionMode):
    """Meta tensors that say they are on the CPU, and take real operands."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[tuple[Any, ...], _Face] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        operands = list(_tensors((args, named)))
        on_meta = [tensor.is_meta for tensor in operands]
        if not any(on_meta):
            made = func(*args, **named)
            return made if operands else _without_values(made)
        answer = _ANSWERS.get(func)
        if answer is not None:
            return answer(*args, **named)
        if torch.is_autocast_enabled("cpu"):
            raise MetaRunError("autocast goes by the device")
        if all(on_meta):
            return self._remembered(func, args, named, operands)
        if any(not tensor.is_meta for tensor in _written(func, args, named)):
            raise MetaRunError("a tensor with values would be written to")
        return _called(func, args, named)

    def _remembered(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], operands: list[Tensor]) -> Any:
        """The same call on tensors that look alike makes one that looks alike, unless it gives one of theirs again."""
        try:
            key = (func, torch.is_grad_enabled(), _key(args), _key(kwargs))
        except TypeError:  # an argument that is no plain value
            return _called(func, args, kwargs)
        face = self._made.get(key)
        if face is not None:
            return face.tensor()
        made = _called(func, args, kwargs)
        if type(made) is Tensor and made.is_meta and _memory(made) not in [_memory(operand) for operand in operands]:
            self._made[key] = _Face.of(made)
        return made


class _Face(NamedTuple):
    """What can be seen of a tensor without values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> _Face:
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad)

    def tensor(self) -> Tensor:
        made = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=_META)
        return made.requires_grad_().clone() if self.requires_grad else made  # not a leaf: may be written to


def _key(value: Any) -> Any:
    """What the shape of a result may go by. Raises TypeError for what is no plain value."""
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, torch.nn.Parameter):
            raise TypeError
        return _Face.of(value)
    if isinstance(value, tuple | list):
        return tuple([_key(item) for item in value])
    if isinstance(value, dict):
        return tuple([(name, _key(item)) for name, item in value.items()])
    if isinstance(value, bool | int | float | str | None | torch.dtype | torch.device):
        return type(value), value  # 1, 1.0 and True are equal, and make different dtypes
    raise TypeError


def _memory(tensor: Tensor) -> Any:
    return tensor.untyped_storage()._cdata


def _itself(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return tensor


#: What meta tensors answer as if they were on the CPU.
_ANSWERS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.device.__get__: lambda tensor: _CPU,
    torch.Tensor.is_meta.__get__: lambda tensor: False,  # type: ignore[attr-defined]
    torch.Tensor.is_cpu.__get__: lambda tensor: True,  # type: ignore[attr-defined]
    torch.Tensor.get_device: lambda tensor: -1,
    torch.Tensor.cpu: _itself,
}


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that a call writes to, by its name and arguments."""
    name = getattr(func, "__name__", "")
    targets: list[Any] = [kwargs.get("out")]
    augmented = name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
    underscored = name.endswith("_") and not name.endswith("__")
    if augmented or underscored or name in ("__set__", "__setitem__") or kwargs.get("inplace"):
        targets += [*args[:1], kwargs.get("input")]
    return list(_tensors(targets))


def _called(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*_on_meta(args), **_on_meta(kwargs))


def _without_values(made: Any) -> Any:
    """A new tensor of floating numbers has none, as it would meet those that have none; a single number keeps its."""
    if type(made) is Tensor and made.dim() and (made.is_floating_point() or made.is_complex()):
        return _meta_of(made)
    return made


def _on_meta(value: Any) -> Any:
    """The same argument on the meta device."""
    if isinstance(value, Tensor):
        return value if value.is_meta else _meta_of(value)
    if type(value) is tuple or type(value) is list:
        return type(value)([_on_meta(item) for item in value])
    if type(value) is dict:
        return {key: _on_meta(item) for key, item in value.items()}
    if type(value) is torch.device or (type(value) is str and value == "cpu"):
        return _META
    return value


def _meta_of(tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise MetaRunError("a tensor without strides")
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)
    return made.requires_grad_(tensor.requires_grad)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
