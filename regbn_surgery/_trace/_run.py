"""`capture`: one run of a module under a recorder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from .._undo import guarded
from ._intercept import intercepted
from ._leaves import LeafRule, is_torch_leaf
from ._objects import Contents, UnrecordableError, named_arrays, named_tensors
from ._placeholders import bind_arguments
from ._recorder import Recorder
from ._scopes import FrameScope, FunctionMode
from ._trace import Trace
from ._watch import watched


def capture(
    root: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    leaf: LeafRule = is_torch_leaf,
    strict: bool = False,
    forward: Callable[..., Any] | None = None,
    values: bool = False,
) -> tuple[Trace, Any]:
    """Run `root` (its hooks included, or `forward` alone where given) and return the trace and the run's own output.

    With `values`, nodes whose tensors are not finite have `meta["strange"]`: "NaN" or "inf".

    Raises:
        CaptureError: in strict captures, where the graph could not repeat what the run did.
    """
    recorder = Recorder(root, leaf=leaf, strict=strict, values=values)
    trace, output = guarded(lambda: _record_run(recorder, args, kwargs, forward))
    if strict and recorder.strangers:
        again = Recorder(root, leaf=leaf, strict=True)
        guarded(lambda: _record_run(again, args, kwargs, forward))
        _refuse_newcomers(recorder, again)
    return trace, output


def capture_values(
    root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], wanted: frozenset[int]
) -> tuple[Trace, dict[int, torch.Tensor]]:
    """As `capture`, with the tensors `wanted` by uid, as they are when the run ends."""
    recorder = Recorder(root)
    trace, _ = guarded(lambda: _record_run(recorder, args, kwargs, None))
    return trace, recorder.values(wanted)


def _record_run(
    recorder: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], forward: Callable[..., Any] | None
) -> tuple[Trace, Any]:
    root = recorder.root
    bind_arguments(recorder, forward or root.forward, args, dict(kwargs))
    named = named_tensors(root, args, kwargs)
    inputs = tuple((name, recorder.uid(tensor)) for name, tensor in named)
    recorder.name_inputs(named)
    recorder.arrays = named_arrays(root, args, kwargs)
    recorder.given = Contents((args, dict(kwargs))) if recorder.strict else None
    recorder._entered = forward is not None
    run = root if forward is None else forward
    watching = watched(root, recorder) if recorder.strict else nullcontext()
    with watching, FrameScope(recorder, root, "", args, kwargs) as frame:
        frame.output = intercepted(recorder, lambda: run(*args, **kwargs), FunctionMode(recorder))
    return recorder.finish(frame.output, (*inputs, *recorder.from_arrays)), frame.output


def _refuse_newcomers(first: Recorder, second: Recorder) -> None:
    """A tensor from outside is a constant if another run uses the very same one; else it is computed out of sight."""
    held = {id(tensor) for tensor, _ in second.strangers}
    for tensor, where in first.strangers:
        if id(tensor) not in held:
            raise UnrecordableError(
                f"{where} uses a tensor of shape {tuple(tensor.shape)} that is created anew in every run by code that "
                "the capture cannot follow: numpy, a scripted function, torch.func or an extension"
            )
