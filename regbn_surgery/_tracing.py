"""`trace`: one run of a model as a `torch.fx` graph, for people and for passes of their own."""

from __future__ import annotations

import torch
import torch.fx
from torch import nn

from ._analysis import run_model
from ._errors import CaptureError, RegBNError
from ._fakes import META, runs_on_meta, standing_in
from ._inputs import Inputs, InputsLike, as_inputs, find_inputs, is_function, make_batches, named_leaves
from ._inspecting import refuse_wrapped
from ._misfits import refusing_strange_names
from ._state import watching_parameters


@refusing_strange_names
def trace(model: nn.Module, example_inputs: InputsLike | None = None, *, training: bool = False) -> torch.fx.Graph:
    """Run a model once and return the record of the run: one node for each call. Changes nothing.

    Calls of torch functions and methods are `call_function` and `call_method` nodes, calls of torch's own layers
    `call_module`; other modules are looked into. Control flow has happened and sizes are numbers, so that the graph is
    a record of this run and no program for other inputs. `print(graph)`, `graph.print_tabular()`, `graph.lint()` and
    passes work as on any `torch.fx` graph. `node.meta` holds:

    - `tensor_meta`, where the value is a tensor: `TensorMetadata` of `torch.fx` (shape, dtype, requires_grad, stride);
      `tensor`: `TensorInfo` with `uid` (equal for one and the same tensor object) and `storage` (equal for tensors that
      share memory); `version`: how often that memory had been written to.
    - `input`, of placeholders and the items of those that are containers: the dotted name (`batch.audio`).
    - `operation`, of calls: the name of the operation, however it was spelled (`add` for `+`, `+=` and `add_`), or the
      class of the layer; `inplace`: True where it writes to an operand.
    - `nn_module_stack`, of calls: the modules around it, outermost first, `{path: (path, class)}`; a module's second
      call is `path@1`. `source` and `stack_trace`: the line of the user's code.
    - `frames`, of the output: the calls of the modules that were looked into.

    Args:
        model: any `nn.Module`.
        example_inputs: as for `inspect`.
        training: whether to run in training mode.

    Returns:
        The graph, with the shapes of the example.

    Raises:
        InputsError: for example inputs that do not fit.
        CaptureError: where the model does not run on them.
    """
    if not isinstance(model, nn.Module):
        raise RegBNError(f"model must be an nn.Module; found {type(model).__module__}.{type(model).__qualname__}")
    refuse_wrapped(model)
    inputs = _example(find_inputs(model, example_inputs), model)
    if runs_on_meta(model):
        try:
            return run_model(model, inputs, training=training, fakes=META).graph
        except CaptureError:
            pass  # fakes can do more, and their errors say more
    with standing_in(model) as fakes, watching_parameters(model, []):
        return run_model(model, inputs, training=training, fakes=fakes).graph


def _example(given: InputsLike, model: nn.Module) -> Inputs:
    """The example as it was given; where it gives several, the first one that `inspect` runs."""
    if isinstance(given, list) or is_function(given):
        return make_batches(model, given).first
    inputs = as_inputs(given)
    named_leaves(model, inputs)  # they fit
    return inputs
