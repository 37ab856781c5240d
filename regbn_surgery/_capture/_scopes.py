"""What a recorder puts around a run and its parts: the function mode, a frame for a call, a pause inside a leaf."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily

if TYPE_CHECKING:
    from ._recorder import Recorder


class FunctionMode(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.recorder.on_torch(func, args, kwargs or {})


class FrameScope:
    def __init__(self, recorder: Recorder, module: nn.Module, path: str, args: Any, kwargs: Any) -> None:
        self.recorder = recorder
        self.output: Any = None
        with torch._C.DisableTorchFunction():
            recorder.open_frame(module, path, args, kwargs)

    def __enter__(self) -> FrameScope:
        return self

    def __exit__(self, *exc: object) -> None:
        with torch._C.DisableTorchFunction():
            self.recorder.close_frame(self.output)


class Paused:
    """Inside a leaf nothing is recorded and the function mode is off, so that torch takes its fast paths as usual."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        stack: list[Any] = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        on_top = bool(stack) and isinstance(stack[-1], FunctionMode)
        self.popped = _pop_mode_temporarily() if on_top else nullcontext()

    def __enter__(self) -> None:
        self.recorder.recording = False
        self.popped.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self.popped.__exit__(*exc)
        self.recorder.recording = True
