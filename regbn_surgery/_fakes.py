"""Run models whose weights are not in memory: shapes flow through them, values do not.

Parameters on the meta device are stood in for by torch's fake tensors for the time of a `with`. The inputs stay real,
and so does all that is computed from them alone, since models look at it: where do the image tokens stand, which
pixels are padding?
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    unset_fake_temporarily,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from . import _tree
from ._inputs import Inputs
from ._metas import OnMeta
from ._state import has_no_values


def wants_values(error: BaseException) -> bool:
    """Whether a run failed for want of a value which a fake does not have."""
    known = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)
    return isinstance(error, known) or type(error).__name__ == "GuardOnDataDependentSymNode"


def is_weightless(model: nn.Module) -> bool:
    """Whether a parameter or buffer of the model has a shape and no values: on the meta device, or a fake."""
    return any(has_no_values(t) for t in itertools.chain(model.parameters(), model.buffers()))


def runs_on_meta(model: nn.Module) -> bool:
    """Whether it is worth trying to run the model on the meta device: its parameters are there, and none is a fake."""
    on_meta = [p.is_meta and not isinstance(p, FakeTensor) for p in model.parameters()]
    return bool(on_meta) and all(on_meta)


@dataclass(frozen=True)
class Fakes:
    """How to run a model: with a mode for its fakes, or, where `mode` is None, as it is or on the meta device."""

    mode: FakeTensorMode | None
    on_meta: bool = False

    @contextmanager
    def running(self) -> Iterator[None]:
        if self.on_meta:
            with OnMeta():
                yield
        elif self.mode is None:
            yield
        else:
            with self.mode, _RealStaysReal():  # type: ignore[no-untyped-call]
                yield

    def inputs(self, inputs: Inputs) -> Inputs:
        """The inputs with fakes for those that have no values."""
        mode = self.mode
        if mode is None:
            return inputs

        def change(_: str, leaf: Any) -> Any:
            return _fake_of(leaf, mode) if isinstance(leaf, torch.Tensor) and leaf.is_meta else leaf

        args, kwargs = _tree.rebuild((inputs.args, inputs.kwargs), change, objects=True)
        return Inputs(*args, **kwargs)


#: A model that has its weights runs as it is.
REAL = Fakes(None)
#: Many a model without weights runs on the meta device, which is quicker than fakes.
META = Fakes(None, on_meta=True)


class _RealStaysReal(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """An operation on real tensors alone is computed; the mode of the fakes below would make a fake of its result.

    So is a new tensor of whole numbers or truth values, which masks and positions are made of.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        operands = [x for x in pytree.tree_leaves((args, named)) if isinstance(x, torch.Tensor)]
        if any(isinstance(x, FakeTensor) for x in operands):
            return func(*args, **named)
        if not operands:
            made = func(*args, **named)
            if not isinstance(made, FakeTensor) or made.dtype.is_floating_point or made.dtype.is_complex:
                return made
        with unset_fake_temporarily():
            return func(*args, **named)


@contextmanager
def standing_in(model: nn.Module) -> Iterator[Fakes]:
    """Put fakes in the place of parameters and buffers without values, and put those back on leaving.

    A model that has all its values is left alone. Tied parameters stay tied.
    """
    if not is_weightless(model):
        yield REAL
        return
    mode = _mode_of(model)
    fakes: dict[int, torch.Tensor] = {}
    lent: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    try:
        for module in model.modules():
            registers: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for register in registers:
                for name, tensor in register.items():
                    if tensor is not None and tensor.is_meta and not isinstance(tensor, FakeTensor):
                        fake = fakes.get(id(tensor))
                        if fake is None:
                            fake = fakes[id(tensor)] = _fake_of(tensor, mode)
                        lent.append((register, name, tensor))
                        register[name] = fake
            _refresh_flat_weights(module)
        yield Fakes(mode)
    finally:
        for register, name, tensor in reversed(lent):
            register[name] = tensor
        for module in model.modules():
            _refresh_flat_weights(module)


def _mode_of(model: nn.Module) -> FakeTensorMode:
    """The mode of the fakes that the model is made of, or a new one."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if isinstance(tensor, FakeTensor):
            return tensor.fake_mode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # brings SymPy: seconds, and only fakes want it

    # Without a ShapeEnv a mask cannot select from a fake: how many it selects would have no name.
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())


def _fake_of(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """A fake of the same shape, strides and dtype, on the CPU where the tensor is on the meta device."""
    device = torch.device("cpu") if tensor.is_meta else tensor.device
    with mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake


def _refresh_flat_weights(module: nn.Module) -> None:
    """Recurrent layers hold their parameters a second time, in a list."""
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
