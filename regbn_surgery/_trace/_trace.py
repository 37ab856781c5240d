"""What a captured run is: the `torch.fx` graph that records it, and what belongs to no single node of the graph."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch.fx

from .._types import Source
from ._meta import Call, Key, TensorInfo, calls_of, tensor_of


@dataclass(frozen=True)
class Frame:
    """One call of a module that was looked into.

    `call` counts the calls of the same module within its caller's frame: the role of a shared module.
    """

    index: int
    path: str
    class_name: str
    parent: int | None
    call: int
    key: Key  # of this call within its caller's frame
    start: int  # number of calls recorded before this call
    inputs: tuple[tuple[str, int], ...]  # by dotted argument name
    reads: tuple[int, ...]  # the same tensors in the order of the call
    outputs: tuple[int, ...] = ()
    end: int = 0  # number of calls recorded when it returned
    source: Source | None = None  # where its caller calls it
    modules: Mapping[str, tuple[str, type]] = field(default_factory=dict, repr=False)  # the stack, as `torch.fx` has it
    parameters: tuple[str, ...] = ()  # all that its forward may be given by name, in this call or in another


@dataclass(frozen=True)
class ValueRead:
    """A tensor's value was read into Python: what follows in the graph is valid for that value only."""

    what: str
    source: Source | None
    reader: str = ""  # class of the module whose forward read it


@dataclass(frozen=True)
class Stranger:
    """A tensor that no recorded call made, and where it was met: a constant of the model's, or one made out of sight.

    `tensor` is gone once nobody else holds it; a constant is the very same object in every run.
    """

    tensor: weakref.ReferenceType[torch.Tensor]
    shape: tuple[int, ...]
    where: str


@dataclass(frozen=True)
class Trace:
    """A run of a model: the graph, whose nodes say what happened (see `_meta`), and what is no node of it."""

    graph: torch.fx.Graph
    frames: tuple[Frame, ...]
    tensors: Mapping[int, TensorInfo]
    inputs: tuple[tuple[str, int], ...]  # dotted name of each tensor input of the traced module
    constants: Mapping[str, Any]  # objects the graph reads that are not attributes of the module
    reads: tuple[ValueRead, ...]
    effects: tuple[str, ...]  # what the run did that the graph cannot repeat, for people
    settings: Mapping[str, Any]  # plain attributes the module's forward read (strict captures): the graph's guards
    stores: tuple[str, ...]  # attributes it wrote; the graph then returns `(output, {name: value})`
    strangers: tuple[Stranger, ...]
    leaks: bool  # whether a size went its own way through Python, so that other sizes may go another
    kept: tuple[Any, ...] = ()  # what settings know by identity; another object must not come by its id

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """The recorded calls in order: views of the graph's nodes."""
        return calls_of(self.graph)

    def on(self, graph: torch.fx.Graph) -> Trace:
        """The same run as another graph of it says."""
        infos = (info for node in graph.nodes if (info := tensor_of(node)) is not None)
        return replace(self, graph=graph, tensors={**self.tensors, **{info.uid: info for info in infos}})

    def path_of(self, call: Call) -> str:
        return self.frames[call.frame].path
