"""What the nodes of a traced graph say: the keys of `node.meta`, and typed access to them.

A node that is a recorded call has `operation`. The other nodes are placeholders, attributes of the model, items that a
container is taken apart into (`getitem`, `getattr`), and containers that are put together for a call.

| key | on | what it holds |
| --- | --- | --- |
| `tensor_meta` | nodes whose value is a tensor | `TensorMetadata` of `torch.fx`: shape, dtype, requires_grad, stride |
| `tensor` | the same | `TensorInfo`: the identity of the tensor object, and of its memory |
| `version` | the same | how often the memory had been written to when the value was made |
| `input` | placeholders and their items | dotted name of the input: `batch.audio` |
| `operation` | calls | name in the table of operations; for a module the name of its class |
| `nn_module_stack` | calls | as in `torch.fx`: `{path: (path, class)}`, outermost first; `path@1` for a second call |
| `frame` | calls | index in `Trace.frames` of the module call whose own forward makes it |
| `source` | calls | `Source`, the place in the user's code; `stack_trace` is the same as text |
| `key` | calls | (spelling of the operation, file, line, counter): finds the call again in another run |
| `inplace` | calls that write into an operand | True |
| `checkpointed` | calls in a checkpoint, or under `saved_tensors_hooks` | True |
| `traits` | calls of modules | what layouts need to know: batch_first, num_features, ... |
| `packs` | containers put together | True |
| `frames` | the output | every module call that was looked into, in order: `Frame` |
| `regbn` | what `insert_regbn` put in | the `PlannedSite` |
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from .._ops import Operation, operation
from .._types import Source

Key = tuple[str, str, int, int]


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


@dataclass(frozen=True, eq=False)
class Call:
    """A node that is a recorded call, read once: of a torch function, a tensor method or a leaf module.

    `inputs` and `outputs` are the identities of its tensors, `input_nodes` the nodes that the inputs come from.
    """

    node: Node
    index: int  # among the calls of the graph
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_nodes: tuple[Node, ...]
    name: str = field(init=False)
    row: Operation = field(init=False)  # what the table of operations says of it

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.node.meta["operation"])
        object.__setattr__(self, "row", operation(self.name))

    @property
    def args(self) -> tuple[Any, ...]:
        return self.node.args

    @property
    def kwargs(self) -> Mapping[str, Any]:
        return self.node.kwargs

    @property
    def module(self) -> str | None:
        """The path of a leaf module."""
        return str(self.node.target) if self.node.op == "call_module" else None

    @property
    def is_module(self) -> bool:
        return self.node.op == "call_module"

    @property
    def frame(self) -> int:
        found: int = self.node.meta["frame"]
        return found

    @property
    def source(self) -> Source | None:
        found: Source | None = self.node.meta["source"]
        return found

    @property
    def key(self) -> Key:
        found: Key = self.node.meta["key"]
        return found

    @property
    def inplace(self) -> bool:
        return "inplace" in self.node.meta

    @property
    def checkpointed(self) -> bool:
        return "checkpointed" in self.node.meta

    @property
    def traits(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.node.meta.get("traits", {})
        return found


def calls_of(graph: torch.fx.Graph) -> tuple[Call, ...]:
    """The recorded calls of a graph, in the order of the run."""
    nodes = [node for node in graph.nodes if "operation" in node.meta]
    return tuple(_call(node, index) for index, node in enumerate(nodes))


def tensor_of(value: Any) -> TensorInfo | None:
    """What is known of the tensor that a node makes; None for other arguments."""
    found: TensorInfo | None = value.meta.get("tensor") if isinstance(value, Node) else None
    return found


def _call(node: Node, index: int) -> Call:
    read = tuple(operands_of(node))
    made = [info.uid for result in results_of(node) if (info := tensor_of(result)) is not None]
    if not made and node.target is operator.setitem:  # `x[i] = y` makes nothing: what is written to is its result
        made = [info.uid for info in map(tensor_of, node.args[:1]) if info is not None]
    return Call(node, index, tuple(uid for uid, _ in read), tuple(made), tuple(found for _, found in read))


def operands_of(node: Node) -> Iterator[tuple[int, Node]]:
    """The tensors that a call reads, in the order of its arguments, each with the node that it comes from."""
    yield from _operands((node.args, node.kwargs))


def _operands(value: Any) -> Iterator[tuple[int, Node]]:
    if isinstance(value, Node):
        info = tensor_of(value)
        if info is not None:
            yield info.uid, value
        elif "packs" in value.meta:
            yield from _operands((value.args, value.kwargs))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _operands(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _operands(item)
    elif isinstance(value, slice):
        yield from _operands((value.start, value.stop, value.step))


def results_of(node: Node) -> Iterator[Node]:
    """The node itself where it makes a tensor; else the items that a container is taken apart into."""
    if "tensor" in node.meta:
        yield node
        return
    for user in node.users:
        if user.target in (getattr, operator.getitem) and user.args[0] is node:
            yield from results_of(user)
