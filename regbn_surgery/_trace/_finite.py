"""Whether the values of a tensor are finite, asked in one pass over those that are."""

from __future__ import annotations

import torch

_NUMBERS = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
)  # fmt: skip
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def strange_values(tensor: torch.Tensor) -> str:
    """`NaN`, `inf`, or "" where all values are finite or cannot be looked at (no values, a subclass, no floats)."""
    if type(tensor) not in _PLAIN or tensor.dtype not in _NUMBERS or tensor.is_meta or tensor.layout != torch.strided:
        return ""
    if tensor.is_nested or tensor.numel() == 0 or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return ""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        if bool(tensor.sum().isfinite()):  # NaN and inf stay in a sum
            return ""
        if bool(tensor.isnan().any()):
            return "NaN"
        return "inf" if bool(tensor.isinf().any()) else ""  # else the sum alone was too large
