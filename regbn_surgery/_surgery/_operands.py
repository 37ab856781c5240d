"""Find tensors among the operands of a call, by identity, and exchange them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _tree


def among(tensor: Tensor, tensors: list[Tensor]) -> Tensor | None:
    """The operand that is the tensor, or shows the same values in the same memory."""
    for other in tensors:
        if other is tensor:
            return other
    if torch.compiler.is_compiling():
        return None
    for other in tensors:
        if same(tensor, other):
            return other
    return None


def same(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    if torch.compiler.is_compiling() or type(a) is not Tensor or type(b) is not Tensor:
        return False
    if a.shape != b.shape or a.dtype != b.dtype or a.layout is not torch.strided or b.layout is not torch.strided:
        return False
    if a.numel() == 0 or a.device.type == "meta" or a.stride() != b.stride() or not b._is_view():
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(a) or torch._C._functorch.is_functorch_wrapped_tensor(b):
        return False
    return a.device == b.device and a.data_ptr() == b.data_ptr()


def placed(
    f: Tensor | None,
    g: Tensor | None,
    tensors: list[Tensor],
    positions: tuple[int, int],
    find: Callable[[Tensor, list[Tensor]], Tensor | None] = among,
) -> tuple[Tensor | None, Tensor | None]:
    """Both sides among the operands of a call that takes them by name: one that nothing else tells stands where it
    stood in the example, unless the other stands there now: then the two have changed places. `find` as `among`."""
    if max(positions) >= len(tensors):
        return f, g
    there = [None if side is None else find(side, tensors) for side in (f, g)]
    if there[0] is not None and there[1] is not None:
        return f, g
    first, second = (tensors[position] for position in positions)
    if there[0] is None and there[1] is None:
        return first, second
    if there[0] is not None:
        return f, first if there[0] is second else second
    return second if there[1] is first else first, g


def now_of(tensor: Tensor, now: list[tuple[Tensor, Tensor]]) -> Tensor:
    for old, new in now:
        if old is tensor:
            return new
    return tensor


def put(now: list[tuple[Tensor, Tensor]], old: Tensor, new: Tensor) -> None:
    for i, (before, _) in enumerate(now):
        if before is old:
            now[i] = (old, new)
            return
    now.append((old, new))


def _is_flat(values: Any) -> bool:
    for value in values:  # noqa: SIM110 - a loop that dynamo can follow
        if type(value) not in _tree.PLAIN:
            return False
    return True


def exchanged(
    args: tuple[Any, ...], kwargs: dict[str, Any], now: list[tuple[Tensor, Tensor]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with some tensors exchanged. What holds none of them stays the object it is: a cache that is a
    dataclass is going to be written to."""

    def change(_: str, leaf: Any) -> Any:
        return now_of(leaf, now)

    def exchange(value: Any) -> Any:
        if type(value) is Tensor:
            return now_of(value, now)
        if type(value) in _tree.PLAIN:
            return value
        if (type(value) is tuple or type(value) is list) and _is_flat(value):
            new = [now_of(item, now) for item in value]
            same = all([a is b for a, b in zip(value, new, strict=True)])  # noqa: C419 - as above
            return value if same else new if type(value) is list else tuple(new)
        for tensor in _tree.tensors(value):
            for old, _ in now:
                if old is tensor:
                    return _tree.rebuild(value, change)
        return value

    return tuple([exchange(value) for value in args]), {name: exchange(value) for name, value in kwargs.items()}
