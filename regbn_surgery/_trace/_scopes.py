"""What a recorder puts around a run and its parts: the function mode, a frame for a call, a pause inside a leaf."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

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
    """Inside a leaf nothing is recorded and the function mode is off, so that torch takes its fast paths as usual.

    The mode is put back by whatever is `guarded` around the run, where an interrupt keeps `__exit__` from doing so.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.mode: FunctionMode | None = None

    def __enter__(self) -> None:
        self.recorder.recording = False
        modes = _modes()
        if modes and isinstance(modes[-1], FunctionMode):
            self.mode = modes[-1]
            _pop_mode()  # type: ignore[no-untyped-call]

    def __exit__(self, *exc: object) -> None:
        if self.mode is not None and not any(mode is self.mode for mode in _modes()):
            _push_mode(self.mode)  # type: ignore[no-untyped-call]
        self.recorder.recording = True


def _modes() -> list[Any]:
    return _get_current_function_mode_stack()  # type: ignore[no-untyped-call, no-any-return]
