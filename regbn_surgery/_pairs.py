"""Pairs named in the rules by their place in the model: `input:gray`, `input:colored`."""

from __future__ import annotations

import difflib

from ._errors import PlanError
from ._types import InputTensor, Inspection, Side


def input_pair(inspection: Inspection, f: str, g: str) -> tuple[str, Side, Side]:
    """The root as host, and the two sides, for a pair of input names.

    Raises:
        PlanError: for a reference that is not `input:NAME`, or names no floating tensor input.
    """
    return "", _side(inspection, f), _side(inspection, g)


def _side(inspection: Inspection, reference: str) -> Side:
    kind, _, name = reference.partition(":")
    if kind != "input" or not name:
        raise PlanError(
            f"pair: {reference!r} is not understood; a pair is made of inputs, written input:NAME. "
            "(Outputs of modules, module:PATH, are not supported yet: match the fusion point instead.)"
        )
    names = [tensor.name for tensor in inspection.inputs]
    found = next((tensor for tensor in inspection.inputs if tensor.name == name), None)
    if found is None:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise PlanError(f"pair: there is no input {name!r}; the inputs are {', '.join(map(repr, names))}.{hint}")
    if not found.dtype.startswith(("float", "bfloat")):
        raise PlanError(f"pair: input {name!r} holds {found.dtype}; RegBN normalises floating-point features")
    return Side(_home(inspection, found), found.shape, found.dtype, found.layout, f"input `{name}`")


def _home(inspection: Inspection, tensor: InputTensor) -> tuple[str, ...]:
    return tuple(m.name for m in inspection.modalities if tensor.name in m.inputs)
