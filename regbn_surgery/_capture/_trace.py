"""What a captured run is: frozen records, free of tensors, and the `torch.fx` graph they belong to."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.fx

from .._ops import Operation, operation
from .._types import Source


@dataclass(frozen=True)
class TensorRef:
    """Stands for a tensor inside the recorded arguments of an operation."""

    uid: int


@dataclass(frozen=True)
class TensorInfo:
    """One tensor object that the run saw. `storage` is equal for tensors that share memory."""

    uid: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: int
    parameter: str | None = None  # its path in the model, for parameters and buffers

    @property
    def is_float(self) -> bool:
        return self.dtype.is_floating_point or self.dtype.is_complex


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
    key: tuple[str, str, int, int]  # of this call within its caller's frame
    start: int  # number of operations recorded before this call
    inputs: tuple[tuple[str, int], ...]  # by dotted argument name
    reads: tuple[int, ...]  # the same tensors in the order of the call
    outputs: tuple[int, ...] = ()
    end: int = 0  # number of operations recorded when it returned
    source: Source | None = None  # where its caller calls it


@dataclass(frozen=True)
class Op:
    """One recorded call: of a torch function, a tensor method or a leaf module.

    `key` finds the same call again in another run of the same frame: name, file, line and a counter.
    """

    index: int
    name: str
    target: Any
    module: str | None  # path, for a leaf module
    frame: int
    source: Source | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    inplace: bool
    key: tuple[str, str, int, int]
    node: torch.fx.Node
    input_nodes: tuple[torch.fx.Node | None, ...]  # the nodes of `inputs`
    traits: Mapping[str, Any]  # facts about a leaf module that layouts need: batch_first, num_features, ...

    @property
    def is_module(self) -> bool:
        return self.module is not None

    @property
    def row(self) -> Operation:
        """What the table of operations says of it."""
        return operation(self.name)


@dataclass(frozen=True)
class ValueRead:
    """A tensor's value was read into Python: what follows in the graph is valid for that value only."""

    what: str
    source: Source | None


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
    """A run of a model: the graph, the operations in order, the frames, and the tensors by uid."""

    graph: torch.fx.Graph
    ops: tuple[Op, ...]
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
    checkpointed: frozenset[int]  # operations whose saved tensors are kept in a way of their own, or computed again
    kept: tuple[Any, ...] = ()  # what settings know by identity; another object must not come by its id

    def path_of(self, op: Op) -> str:
        return self.frames[op.frame].path
