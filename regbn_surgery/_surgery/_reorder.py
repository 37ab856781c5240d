"""Calls that have to wait until both sides of a RegBN exist: which ones, and whether they may.

Where f is read before g is made, what reads f waits, and what is computed from that. A call may only wait where
nothing is written in place meanwhile that it reads, and where no mode (gradients, autocast) changes in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.overrides import TorchFunctionMode

from .._errors import RewriteError
from .._trace import Call, Trace

Node = torch.fx.Node
_MODES = (
    torch._C._set_grad_enabled,
    torch.amp.autocast_mode._enter_autocast,
    torch.amp.autocast_mode._exit_autocast,
)


def place(graph: torch.fx.Graph, order: Mapping[Node, int], sides: tuple[Node, Node], reading: set[Node]) -> Node:
    """The node behind which RegBN goes: just before the first reader, so that it sees what was written in place
    until then; where a reader comes before the other side exists, as soon as both do."""
    both = max(sides, key=order.__getitem__)
    nodes = list(graph.nodes)
    if both.op == "placeholder":
        both = [node for node in nodes if node.op == "placeholder"][-1]
    first = min((order[node] for node in reading), default=0)
    return nodes[first - 1] if first > order[both] else both


def dependents(early: set[Node], after: Node, order: Mapping[Node, int]) -> set[Node]:
    """The early readers and everything computed from them up to `after`."""
    found, todo = set(early), list(early)
    while todo:
        for user in todo.pop().users:
            if user not in found and order.get(user, len(order)) <= order[after]:
                found.add(user)
                todo.append(user)
    return found


def refuse_cycle(name: str, words: tuple[str, str], waiting: set[Node], sides: tuple[Node, Node]) -> None:
    """Raises RewriteError where a side would have to wait for itself."""
    if waiting & set(sides):
        raise RewriteError(
            f"RegBN {name!r} cannot be inserted between {words[0]} and {words[1]}: one of them is computed from a "
            "result that already uses the other, so neither can come first. Normalise the other direction, or another "
            "point."
        )


def refuse_hazard(
    host: nn.Module, trace: Trace, name: str, waiting: set[Node], after: Node, order: Mapping[Node, int]
) -> None:
    """Raises RewriteError where a call that waits would see other values, or another mode, than it did."""
    if not waiting:
        return
    start = min(order[node] for node in waiting)
    calls = {call.node: call for call in trace.calls}
    window = [node for node, index in order.items() if start <= index <= order[after]]
    for node in window:
        if node.target in _MODES:
            raise RewriteError(
                f"RegBN {name!r} cannot be inserted: calls would have to be delayed, until the other side is computed, "
                "across a change of the gradient or autocast mode. Compute both sides in one mode, or normalise the "
                "other direction."
            )
        writer = calls.get(node)
        written = _written(host, trace, writer) if writer is not None else frozenset()
        if writer is None or not written:
            continue
        moved = node in waiting
        for other in window:
            overtaken = other not in waiting and order[other] > order[node] if moved else (
                other in waiting and order[other] < order[node]
            )  # fmt: skip
            reader = calls.get(other) if overtaken else None
            if reader is not None and written & _touched(trace, reader):
                raise RewriteError(
                    f"RegBN {name!r} cannot be inserted: calls would have to be delayed until the other side is "
                    f"computed, but {_words(writer)} writes in place what {_words(reader)} reads, and their order "
                    "would change. Compute both sides first, write a new tensor instead, or normalise the other "
                    "direction."
                )


def _words(op: Call) -> str:
    called = f"{op.name} `{op.module}`" if op.module else op.name
    return f"{called} at {op.source}" if op.source else called


def _touched(trace: Trace, op: Call) -> frozenset[int]:
    return frozenset(trace.tensors[uid].storage for uid in (*op.inputs, *op.outputs))


def _written(host: nn.Module, trace: Trace, op: Call) -> frozenset[int]:
    """The memory a call writes to: `x.add_(y)`, `x[i] = y`, and `nn.ReLU(inplace=True)`."""
    module = host.get_submodule(op.module) if op.module is not None else None
    if op.inplace or getattr(module, "inplace", False) is True:
        return frozenset(trace.tensors[uid].storage for uid in (*op.inputs[:1], *op.outputs))
    return frozenset()


# -- the order of random draws ----------------------------------------------------------------------------------------


class _NoDropout(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if "dropout" in name and args and isinstance(args[0], torch.Tensor):
            return args[0].clone()
        if name == "scaled_dot_product_attention":
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            else:
                kwargs["dropout_p"] = 0.0
        if name == "multi_head_attention_forward":
            kwargs["training"] = False
        return func(*args, **kwargs)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Reordered calls draw other random numbers than they did: whether they compute the same shows without any."""
    recurrent = [(m, m.dropout) for m in model.modules() if isinstance(m, nn.RNNBase)]
    for module, _ in recurrent:
        module.dropout = 0.0
    try:
        with _NoDropout():
            yield
    finally:
        for module, p in recurrent:
            module.dropout = p
