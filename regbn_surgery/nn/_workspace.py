"""Memory on the CPU that a thread's training steps share: fresh pages cost a step as much as one of its products."""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class _Kept(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[torch.dtype, Tensor] = {}


_kept = _Kept()


def borrow(size: int, dtype: torch.dtype) -> Tensor:
    """`size` elements or more, of any value, which nobody else has until they are given back.

    A buffer that is never given back, after an error for instance, is freed like any other tensor.
    """
    buffer = _kept.buffers.pop(dtype, None)
    if buffer is not None and buffer.numel() >= size:
        return buffer
    with torch.inference_mode(False):  # what is made in inference mode cannot be written to outside of it
        return torch.empty(size, dtype=dtype, device="cpu")


def give_back(buffer: Tensor) -> None:
    """Keep the buffer for this thread's next step; not one that some mode has made, which has no memory."""
    if type(buffer) is Tensor:
        _kept.buffers[buffer.dtype] = buffer
