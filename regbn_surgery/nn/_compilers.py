"""What the compilers of torch say of themselves, and which of them a training step is too much for."""

from __future__ import annotations

import torch

#: A compiler that takes hours over the derivative of a training step, seen with torch 2.6: the step is then a graph
#: break. Torch 2.10 and newer take it in one graph.
OLD_COMPILER = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10)

#: With torch 2.10 `torch.compiler.is_exporting()` is true in whatever is compiled, and in 2.6 it is not there. What it
#: reads is right in all versions tried; what 2.6 has is true in exports that are not strict alone.
_FLAG = next((name for name in ("_is_exporting_flag", "_is_compiling_flag") if hasattr(torch.compiler, name)), None)


def exporting() -> bool:
    """Whether this is traced by `torch.export`, for evaluation elsewhere; a compiler follows it."""
    return bool(torch.compiler.is_exporting() if _FLAG is None else getattr(torch.compiler, _FLAG))
