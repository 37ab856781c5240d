"""What torch keeps for each thread beside the tensors: stacks of modes, gradient mode, autocast.

torch's own `with` blocks put it back, except where an interrupt comes between two instructions of theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils import _python_dispatch as dispatch


class ThreadState:
    """torch's state of this thread at the time of construction; `restore` may be called any number of times."""

    def __init__(self) -> None:
        self.function_modes: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        self.dispatch_modes: list[Any] = dispatch._get_current_dispatch_mode_stack()
        self.functions = torch._C._get_torch_function_state()  # type: ignore[attr-defined]
        self.grad = torch._C.is_grad_enabled()
        self.autocast = _autocast()
        self.saved_tensors = _saved_tensors_hooks()

    def restore(self) -> None:
        torch._C._set_torch_function_state(self.functions)  # type: ignore[attr-defined]
        now = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        _restack(now, self.function_modes, _pop_mode, _push_mode)
        _restack(
            dispatch._get_current_dispatch_mode_stack(), self.dispatch_modes, dispatch._pop_mode, dispatch._push_mode
        )
        torch._C._set_grad_enabled(self.grad)
        if _autocast() != self.autocast:
            _set_autocast(*self.autocast)
        while _saved_tensors_hooks() not in (None, self.saved_tensors):
            torch._C._autograd._pop_saved_tensors_default_hooks()


def _restack(now: list[Any], wanted: list[Any], pop: Any, push: Any) -> None:
    """Pop what is not wanted, and push what is missing. `now` and `wanted` are from the bottom to the top."""
    same = 0
    while same < min(len(now), len(wanted)) and now[same] is wanted[same]:
        same += 1
    for _ in now[same:]:
        pop()
    for mode in wanted[same:]:
        push(mode)


#: Asking for a device that is not there is answered, too.
_KINDS = ("cpu", "cuda")
_Autocast = tuple[tuple[tuple[str, bool, torch.dtype], ...], bool, int]


def _autocast() -> _Autocast:
    """For each device whether autocast is on and its dtype; whether casts are cached; how deep regions are nested."""
    nested = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    # From torch._C, since `_trace` listens to the questions that go through torch.
    regions = tuple((kind, torch._C.is_autocast_enabled(kind), torch._C.get_autocast_dtype(kind)) for kind in _KINDS)
    return regions, torch.is_autocast_cache_enabled(), nested - 1


def _set_autocast(regions: tuple[tuple[str, bool, torch.dtype], ...], cached: bool, nesting: int) -> None:
    for kind, enabled, dtype in regions:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)
    torch.set_autocast_cache_enabled(cached)
    while torch.autocast_increment_nesting() < nesting:
        pass
    while torch.autocast_decrement_nesting() > nesting:
        pass
    if nesting == 0:
        torch.clear_autocast_cache()


def _saved_tensors_hooks() -> Any:
    """The innermost pair of hooks that `saved_tensors_hooks` has set; None for none, and where torch cannot be asked
    (before 2.7)."""
    ask = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return None if ask is None else ask(True)
