"""What a plan wants to know of a model and its example beside the fusion points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ._analyse import Analysis
from ._analyse._causal import causal_modalities
from ._analyse._pairs import Pair
from ._capture import Trace
from ._inputs import Inputs, InputsLike, as_inputs, shared_axis
from ._plan import Facts
from ._state import has_no_values


def find_facts(model: nn.Module, analysis: Analysis, example: InputsLike) -> Facts:
    """Look at the model, its weights and the example; runs the model where streams of tokens meet others."""
    return Facts(
        references=references_of(analysis),
        batch=batch_of(model, example),
        weights_seen=True,
        trained=why_trained(model),
        causal=causal_modalities(
            model, analysis.batches.small, analysis.inspection, writes_parameters=analysis.writes_parameters
        ),
    )


def references_of(analysis: Analysis) -> tuple[str, ...]:
    """All that a pair may name, in the order in which the model reads or makes it."""
    trace = analysis.runs[0].trace
    made = [(op.index, op.module) for op in trace.ops if op.module is not None]
    # A frame's own output is there after its last operation.
    made += [(frame.start, frame.path) for frame in trace.frames if frame.parent is not None and frame.path != "?"]
    modules = dict.fromkeys(path for _, path in sorted(made, key=lambda item: item[0]))
    return (*(f"input:{name}" for name, _ in trace.inputs), *(f"module:{path}" for path in modules))


def needs(analysis: Analysis, pair: Pair) -> tuple[bool, bool]:
    """Whether g of a pair is computed from f, and f from g."""
    if pair.recipe is None:  # two inputs
        return False, False
    trace = analysis.runs[0].trace
    f, g = (take.uid for take in pair.recipe.takes)
    return _leads(trace, f, g), _leads(trace, g, f)


def _leads(trace: Trace, start: int, end: int) -> bool:
    reached = {start}
    for op in trace.ops:
        if not reached.isdisjoint(op.inputs):
            reached.update(op.outputs)
    return end in reached and end != start


def batch_of(model: nn.Module, example: InputsLike) -> int | None:
    """Samples in the user's example; None where it makes any number of them, or shows no batch axis."""
    if callable(example) and not isinstance(example, Inputs | torch.Tensor | Mapping):
        return None
    axis = shared_axis(model, as_inputs(example))
    return None if axis is None else axis[1]


def why_trained(model: nn.Module) -> str | None:
    """What shows that the weights are not fresh: where they come from, or norms that have moved from their start."""
    origin: Any = getattr(getattr(model, "config", None), "_name_or_path", None) or getattr(model, "name_or_path", None)
    if isinstance(origin, str) and origin:
        return f"they come from {origin!r}"
    for name, module in model.named_modules():
        counted = getattr(module, "num_batches_tracked", None)
        if isinstance(counted, torch.Tensor) and not has_no_values(counted) and int(counted) > 0:
            return f"`{name}` has seen {int(counted)} batches"
        if _is_norm(module) and _moved(module):
            return f"the weights of `{name}` have moved from their start"
    return None


def _is_norm(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return name.endswith("norm") or "batchnorm" in name or "layernorm" in name


def _moved(module: nn.Module) -> bool:
    """Whether a norm's affine parameters are neither all one nor all zero, their values at the start."""
    for name in ("weight", "bias"):
        value = getattr(module, name, None)
        if isinstance(value, nn.Parameter) and not has_no_values(value) and value.numel() > 1:
            spread = value.detach().float()
            if not bool(torch.isfinite(spread).all()) or float(spread.max() - spread.min()) > 1e-6:
                return True
    return False
