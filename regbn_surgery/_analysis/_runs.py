"""One analysed run, and the words for what is in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .. import _tree
from .._inputs import Inputs
from .._trace import Trace
from .._types import Layout
from ._flow import Flow
from ._lineage import Home


@dataclass(frozen=True)
class Run:
    """One analysed run: the trace in one mode, what flowed through it, and its layouts."""

    mode: str
    trace: Trace
    flow: Flow
    layout: Callable[[int], Layout]
    order: tuple[str, ...]  # modalities in input order


@dataclass(frozen=True, eq=False)
class Observed:
    """What one run of a model has given: its outputs by name, as they were when it ended."""

    inputs: Inputs
    training: bool
    values: tuple[tuple[str, Any], ...]


def values_of(output: Any) -> tuple[tuple[str, Any], ...]:
    """Everything in an output by name, its tensors copied: a model may give what it goes on writing into."""
    copied = [(n, v.detach().clone() if isinstance(v, torch.Tensor) else v) for n, v in _tree.leaves(output)]
    return tuple(copied)


def ordered(run: Run, names: Home) -> tuple[str, ...]:
    return tuple(name for name in run.order if name in names)


def layer_behind(run: Run, uid: int) -> str | None:
    """Path of the nearest layer that a tensor comes out of, by the first operand; None for one no layer has touched."""
    seen: set[int] = set()
    while uid in run.flow.producers and uid not in seen:
        seen.add(uid)
        op = run.trace.calls[run.flow.producers[uid]]
        if uid in op.inputs:  # a cast that changed nothing, or a write in place: who made it before?
            op = next((o for o in run.trace.calls if uid in o.outputs and uid not in o.inputs), op)
        if op.module is not None:
            return op.module
        if op.row.embeds:  # a class of embeddings that looks its own table up, and scales it (BART)
            return run.trace.path_of(op) or None
        carrying = [i for i in op.inputs if i in run.flow.lineages and run.flow.lineages[i].touched]
        if not carrying:
            return None
        uid = carrying[0]
    return None


def producer(run: Run, uid: int) -> str:
    index = run.flow.producers.get(uid)
    if index is None:
        name = next((name for name, input_uid in run.trace.inputs if input_uid == uid), None)
        return f"input `{name}`" if name is not None else "a constant"
    op = run.trace.calls[index]
    if op.module is not None:
        return f"{op.name} `{op.module}`"
    owner = run.trace.path_of(op)
    return f"{op.name} in `{owner}`" if owner else op.name
