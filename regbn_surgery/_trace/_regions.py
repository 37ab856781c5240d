"""Regions of a run in which torch computes otherwise, in its graph: gradients off, autocast, checkpoints.

They change torch's state without being operations on tensors, so that the graph has to enter and leave them itself.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.fx

from ._source import entering_grad_mode


class Regions:
    """The regions that are open; `impure` gets the nodes that must stay, though nothing uses them."""

    def __init__(self, graph: torch.fx.Graph, impure: set[torch.fx.Node]) -> None:
        self.graph = graph
        self.impure = impure
        self._grad_modes: list[Any] = []  # gradient mode at entry, then one per `with` that is open
        self._autocasts: list[torch.fx.Node] = []
        self._saving = 0  # in how many we are whose saved tensors are kept in a way of their own

    @property
    def checkpointed(self) -> bool:
        """Whether saved tensors are kept in another way than usual here."""
        return self._saving > 0

    def set_grad_mode(self, enabled: bool) -> None:
        """`with no_grad():` puts back on leaving what was there on entering: in the graph, too, and not what was
        there when it was captured."""
        if entering_grad_mode() or not self._grad_modes:
            if not self._grad_modes:
                self._grad_modes.append(self._entry_grad_mode())
            self._grad_modes.append(enabled)
        else:
            self._grad_modes.pop()
        self.impure.add(self.graph.call_function(torch._C._set_grad_enabled, (self._grad_modes[-1],)))

    def _entry_grad_mode(self) -> torch.fx.Node:
        nodes = list(self.graph.nodes)
        start = next((node for node in nodes if node.op != "placeholder"), None)
        with self.graph.inserting_before(start) if start is not None else nullcontext():
            return self.graph.call_function(torch.is_grad_enabled)

    def autocast(self, region: torch.autocast, entering: bool) -> None:
        """A `with autocast`, of which the function mode hears nothing, begins or ends."""
        if entering:
            how = (region.device, region.fast_dtype, region._enabled, region._cache_enabled)
            node = self.graph.call_function(torch.amp.autocast_mode._enter_autocast, how)
            self._autocasts.append(node)
        else:
            node = self.graph.call_function(torch.amp.autocast_mode._exit_autocast, (self._autocasts.pop(),))
        self.impure.add(node)

    def saved_tensors(self, entering: bool) -> None:
        """A checkpoint begins or ends, or a `saved_tensors_hooks` of the user's."""
        self._saving += 1 if entering else -1
