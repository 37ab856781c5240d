"""The third way: the host's own forward runs as it is, and a function mode tells the passage of its calls.

For places that have no expression of their own (the additions in builtin `sum`) and code whose source is not at hand.
A call is known by its code object and instruction. Slower than a rewritten forward, and a graph break under
`torch.compile`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import CheckpointFunction

from .. import _ops as fn
from .. import _tree
from .._errors import RewriteError
from .._trace import intercepted, listening
from .._trace._source import current_source, kind_of_module
from ._classes import original_class, unbound_function
from ._growing import Frame
from ._leaving import leaving
from ._locate import Locator
from ._passage import Passage
from ._table import Path

if TYPE_CHECKING:
    from ._host import HostSurgery


class PassageMode(TorchFunctionMode):
    """Tells a passage of the calls of its host's own frame."""

    def __init__(self, surgery: HostSurgery, passage: Passage, locator: Locator) -> None:
        super().__init__()
        self.surgery = surgery
        self.passage = passage
        self.locator = locator
        self.inside = False
        self.around = listening()  # a trace of the whole model, say, which wants to know of module calls as well
        self.regions: list[bool] = []  # checkpoints of the host's own that we are in, and whether gradients will ask

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        name = fn.name_of(func)
        if name == "__iter__":
            return iter(self.__torch_function__(torch.Tensor.unbind, types, (args[0], 0)))
        if fn.is_silent(func, name):
            return func(*args, **kwargs)
        return self._event(name, func, None, args, kwargs)

    def on_call(
        self, call: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.inside:
            return self._hand_on(call, module, args, kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            with leaving(self):
                return self._hand_on(call, module, args, kwargs)

        return self._event(kind_of_module(module), run, module, args, kwargs)

    def _hand_on(
        self, call: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.around is None:
            return call(module, *args, **kwargs)
        return self.around.on_call(call, module, args, kwargs)

    def on_function(self, call: Callable[..., Any], cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.inside:
            return call(*args, **kwargs)
        if cls is CheckpointFunction:
            self.on_saved_tensors(entering=True)
            try:
                return call(*args, **kwargs)
            finally:
                self.on_saved_tensors(entering=False)

        def run(*args: Any, **kwargs: Any) -> Any:
            with leaving(self):
                return call(*args, **kwargs)

        return self._event(cls.__name__, run, None, args, kwargs)

    def on_saved_tensors(self, entering: bool) -> None:
        if entering:
            self.regions.append(not self.inside and torch.is_grad_enabled())
        else:
            self.regions.pop()

    def _event(
        self, name: str, func: Any, module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self._path(name)
        output = func(*args, **kwargs) if path is None else self.passage.visit(path, func, module, args, kwargs)
        if len(args) == 2 and any(type(value) is int and value == 0 for value in args):
            self.passage.follow(next((value for value in args if isinstance(value, torch.Tensor)), None), output)
        return output

    def run_here(self) -> AbstractContextManager[None]:
        """RegBN is about to run: out of the host's frame, and not in a part that would be computed again."""
        if any(self.regions):
            raise RewriteError(
                f"RegBN would run in a checkpointed part of {type(self.passage.host).__name__}.forward: when that part "
                "is recomputed for the backward pass, RegBN would be missing. Checkpoint the layers, or the whole "
                "model, instead."
            )
        return leaving(self)

    def _path(self, name: str) -> Path | None:
        source = current_source()
        if source is None:
            return None
        groups = self.locator.groups(source.frames, self.surgery.entry)
        keys = [(code.co_qualname, offset) for _, code, offset, _ in groups]
        return self.surgery.slots.find(keys, name)


def run_by_mode(
    surgery: HostSurgery,
    host: nn.Module,
    forward: Any,
    frame: Frame,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run the host's own forward with RegBN at its sites."""
    # The forward comes unbound: dynamo hands a bound method on by its name, and by name it is the rewritten one.
    bound = forward.__get__(host)
    locator = Locator(original_class(host), unbound_function(host))
    passage = Passage(host, surgery.table_of(frame.role), _tree.bind(bound, args, kwargs))
    frame.passage, passage.met_before = passage, frame.met_before
    mode = PassageMode(surgery, passage, locator)
    passage.around = mode.run_here
    with contextlib.ExitStack() as stack:
        for other in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
            if isinstance(other, PassageMode) and other.passage.host is host:  # a forward that calls `self.forward`
                stack.enter_context(leaving(other))
        return intercepted(mode, lambda: bound(*args, **kwargs), mode)
