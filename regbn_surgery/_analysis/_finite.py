"""NaN and infinite values on the way to a fusion or to the output, and the operation in which they first appear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch.fx
from torch import Tensor

from .._codes import coded
from .._trace import strange_values
from ._runs import Run

NAN = "NaN"


def not_finite(runs: Sequence[Run], given: Iterable[tuple[str, Tensor]] = ()) -> list[str]:
    """One note on values that are not finite, with where they come from; none where all are.

    `given` are the inputs of the example by name: a run sees some of its samples only. Infinite values count where
    modalities meet (a mask of minus infinity is none of their features), NaN in what the model returns, too.
    """
    found: dict[str, str] = {}  # where they first appear, and what they reach
    for name, tensor in given:
        if word := strange_values(tensor):
            found[f"the example's input `{name}` has {word} values"] = ""
    for run in runs:
        for where, node in _reached(run):
            word = node.meta["strange"]
            origin = _origin(node, word)
            text = f"{word} first appears in {origin}" if origin else ""
            if text:
                found.setdefault(text, where)
    if not found:
        return []
    parts = [f"{text} and reaches {where}" if where else text for text, where in found.items()]
    more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return [coded("RB016", "values are not finite: " + "; ".join(parts[:_SHOWN]) + more)]


_SHOWN = 3


def _reached(run: Run) -> Iterator[tuple[str, torch.fx.Node]]:
    """The operands of meetings that are not finite; where all are finite, what the model returns."""
    met_some = False
    for meeting in run.flow.meetings:
        nodes = meeting.op.input_nodes
        for met in meeting.operands:
            if met.position < len(nodes) and "strange" in nodes[met.position].meta:
                met_some = True
                yield f"the fusion by `{meeting.op.name.strip('_')}` at {meeting.op.source}", nodes[met.position]
    for last in () if met_some else run.trace.graph.find_nodes(op="output"):
        for node in last.all_input_nodes:
            if node.meta.get("strange") == NAN:
                yield "the output", node


def _origin(node: torch.fx.Node, word: str) -> str:
    """The first operation of the run that gave such values, among those from which they have come; "" for an input,
    which is told by its own name."""
    order = {each: index for index, each in enumerate(node.graph.nodes)}
    todo, seen = [node], {node}
    while todo:
        before = [n for n in todo.pop().all_input_nodes if n not in seen and _is_strange(n, word)]
        seen.update(before)
        todo += before
    makers = (n for n in seen if n.op == "placeholder" or "operation" in n.meta)
    first = min(makers, key=order.__getitem__, default=None)
    if first is None or first.op == "placeholder":
        return ""
    layer = f"{first.meta['operation']} `{first.target}`" if first.op == "call_module" else f"`{_name(first)}`"
    return f"{layer} at {first.meta['source']}" if first.meta.get("source") is not None else layer


def _is_strange(node: torch.fx.Node, word: str) -> bool:
    found = node.meta.get("strange")
    return found == word if word == NAN else found is not None


def _name(node: torch.fx.Node) -> str:
    return str(node.meta["operation"]).strip("_")
