"""Which call of a shared owner is this? LXMERT calls one cross-attention twice per layer, with the modalities swapped.

The calls within one forward of a common caller follow a fixed cycle of roles. The count starts anew with every
forward of that caller, so that an exception, or a checkpoint's recomputation, cannot put it out of step.
"""

from __future__ import annotations

import threading
from typing import Any

from torch import nn

from ._compiling import constant_in_graphs

#: The role of calls at which nothing meets, such as self-attention through the same module.
NO_ROLE = -1


@constant_in_graphs
def _thread() -> int:
    """The thread we are in; in a compiled graph the one that compiled it, which counts and resets in the same graph."""
    return threading.get_ident()


class Roles:
    def __init__(self, cycle: tuple[int, ...]) -> None:
        self.cycle = cycle
        self.counts: dict[int, int] = {}  # by thread: a server may evaluate one model in several

    def next(self) -> int:
        thread = _thread()
        count = self.counts.get(thread, 0)
        self.counts[thread] = count + 1
        return self.cycle[count % len(self.cycle)]

    def reset(self) -> None:
        self.counts[_thread()] = 0


class RoleReset:
    """Forward pre-hook of the common caller."""

    def __init__(self, roles: Roles) -> None:
        self.roles = roles

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.roles.reset()
