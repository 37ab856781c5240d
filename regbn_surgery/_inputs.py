"""Example inputs: their forms, their names, and the same inputs at another batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from . import _tree
from ._errors import InputsError


class Inputs:
    """Positional and keyword arguments of one call of a model.

    >>> Inputs(image, mask, labels=labels)      # model(image, mask, labels=labels)

    A tensor or a tuple alone means positional arguments, a dict alone means keyword arguments; `Inputs` says both,
    and is also how to give a model its one list or dict: `Inputs([left, right])`, `Inputs({"image": x})`. A list of
    two `Inputs` is an example and a second one of other lengths, which shows what axes vary in length.
    """

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs

    def __repr__(self) -> str:
        parts = [_shown(x) for x in self.args]
        parts += [f"{key}={_shown(x)}" for key, x in self.kwargs.items()]
        return f"Inputs({', '.join(parts)})"


class _Shape:
    """Stands for a tensor in what people read: its dtype and shape."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.words = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"

    def __repr__(self) -> str:
        return self.words


def _shown(value: Any) -> str:
    """As people read it: `repr`, with shapes in place of tensors. Of classes of the user's, the name and the fields."""
    if isinstance(value, torch.Tensor):
        return repr(_Shape(value))
    children = _tree.items(value, objects=True)
    if children is None:
        return repr(value)
    if type(value) is dict:
        return "{" + ", ".join(f"{key!r}: {_shown(child)}" for key, child in children) + "}"
    texts = [_shown(child) for _, child in children]
    if type(value) is list:
        return f"[{', '.join(texts)}]"
    if type(value) is tuple:
        return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})"
    named = [f"{key}={text}" for (key, _), text in zip(children, texts, strict=True)]
    return f"{type(value).__name__}({', '.join(named)})"


InputsLike = Any  # torch.Tensor | tuple | Mapping | Inputs | Callable[[int], those]

#: The two batch sizes at which every model is run. Never 1: an axis of size 1 broadcasts, and means nothing.
BATCH_SIZES = (2, 3)


@dataclass(frozen=True)
class Batches:
    """The example inputs at two batch sizes; `large` is None where a second size cannot be made from the example.

    `longer` is a second example, of other lengths, at the first of the sizes.
    """

    small: Inputs
    large: Inputs | None
    sizes: tuple[int, int]
    notes: tuple[str, ...] = field(default=())
    longer: Inputs | None = None

    def each(self) -> list[Inputs]:
        return [inputs for inputs in (self.small, self.large, self.longer) if inputs is not None]


def as_inputs(example: InputsLike) -> Inputs:
    """Bring any accepted form of example inputs to `Inputs`.

    Raises:
        InputsError: for a form that could mean two things.
    """
    if isinstance(example, Inputs):
        return example
    if _are_two(example):
        return as_inputs(example[0])
    if isinstance(example, torch.Tensor):
        return Inputs(example)
    if isinstance(example, tuple) and not _tree.is_namedtuple(example):
        return Inputs(*example)
    if isinstance(example, Mapping):
        return Inputs(**{str(key): value for key, value in example.items()})
    found = "a list" if isinstance(example, list) else f"{type(example).__module__}.{type(example).__qualname__}"
    raise InputsError(
        f"example_inputs is {found}. Give a tensor or a tuple (positional arguments), a dict (keyword arguments), "
        "Inputs(*args, **kwargs) for both or for one list, dict or object argument, "
        "[Inputs(...), Inputs(...)] for two examples of different lengths, "
        "or a function from the batch size to any of these."
    )


def named_leaves(model: nn.Module, inputs: Inputs) -> list[tuple[str, Any]]:
    """Every leaf of the inputs with its dotted name: the `forward` parameter, then keys or indices.

    Raises:
        InputsError: where the inputs do not fit the model's `forward`.
    """
    try:
        named = _tree.bind(model.forward, inputs.args, inputs.kwargs)
    except TypeError as error:
        hint = ""
        if inputs.kwargs and not inputs.args:
            hint = " A dict means keyword arguments; if forward takes one dict, give Inputs({...})."
        raise InputsError(
            f"The example inputs do not fit {type(model).__name__}.forward: {error}. Given: {inputs!r}.{hint}"
        ) from error
    return list(_tree.leaves(named, objects=True))


def named_tensors(model: nn.Module, inputs: Inputs) -> list[tuple[str, torch.Tensor]]:
    return [(name, leaf) for name, leaf in named_leaves(model, inputs) if isinstance(leaf, torch.Tensor)]


def make_batches(model: nn.Module, example: InputsLike) -> Batches:
    """The example at two batch sizes, by asking the user's function or by cutting and repeating samples.

    Raises:
        InputsError: for a batch of one sample, or inputs that do not fit the model.
    """
    if _are_two(example):
        return _with_second(model, *example)
    if callable(example) and not isinstance(example, Inputs | torch.Tensor | Mapping):
        small, large = (as_inputs(example(size)) for size in BATCH_SIZES)
        for inputs in (small, large):
            named_leaves(model, inputs)
        return Batches(small, large, BATCH_SIZES)
    inputs = as_inputs(example)
    tensors = named_tensors(model, inputs)
    if not tensors:
        raise InputsError(f"The example inputs hold no tensor. Given: {inputs!r}.")
    axis = shared_axis(model, inputs)
    if axis is None:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors)
        note = (
            f"the inputs share no batch axis ({shapes}), so batch axes are unknown: "
            "give example_inputs as a function of the batch size"
        )
        return Batches(inputs, None, (0, 0), (note,))
    dim, size = axis
    if size < 2:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors)
        raise InputsError(
            f"The example inputs have batch size {size} ({shapes}). An axis of size 1 cannot be told from one that "
            "broadcasts, and batch statistics of one sample do not exist: give at least 2 samples."
        )
    small, large = (_resized(inputs, dim, size, count) for count in BATCH_SIZES)
    return Batches(small, large, BATCH_SIZES)


def _are_two(example: InputsLike) -> bool:
    return isinstance(example, list) and len(example) == 2 and all(isinstance(item, Inputs) for item in example)


def _with_second(model: nn.Module, first: Inputs, second: Inputs) -> Batches:
    batches, others = make_batches(model, first), make_batches(model, second)
    if _shapes(model, batches.small) == _shapes(model, others.small):
        raise InputsError(
            f"The two examples have the same shapes at a batch size of {BATCH_SIZES[0]} ({batches.small!r}): nothing "
            "varies in length between them. Give one of another length, or one example alone."
        )
    return replace(batches, longer=others.small)


def _shapes(model: nn.Module, inputs: Inputs) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in named_tensors(model, inputs)]


def shared_axis(model: nn.Module, inputs: Inputs) -> tuple[int, int] | None:
    """(axis, size) of the batch axis that the tensor inputs share, or None.

    Axis 0 where all agree on its size; else axis 1 (sequence-first models), unless it is the features of a `[N, C]`.
    Where both would do, layers of the model that say `batch_first=False` decide.
    """
    tensors = [tensor for _, tensor in named_tensors(model, inputs) if tensor.dim() > 0]
    candidates = []
    for dim in (0, 1):
        sizes = {tensor.shape[dim] for tensor in tensors if tensor.dim() > dim}
        if len(sizes) == 1 and all(tensor.dim() > dim for tensor in tensors):
            features = any(tensor.dim() == dim + 1 and tensor.dtype.is_floating_point for tensor in tensors)
            if dim == 0 or not features:
                candidates.append((dim, sizes.pop()))
    if len(candidates) > 1 and _is_sequence_first(model):
        return candidates[1]
    return candidates[0] if candidates else None


def _is_sequence_first(model: nn.Module) -> bool:
    flags = [_tree.attribute(module, "batch_first") for module in model.modules()]
    flags = [flag for flag in flags if isinstance(flag, bool)]
    return bool(flags) and not any(flags)


def _resized(inputs: Inputs, dim: int, size: int, count: int) -> Inputs:
    def change(_: str, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.dim() <= dim or leaf.shape[dim] != size:
            return leaf
        index = torch.arange(count, device=leaf.device) % size
        return leaf.detach().index_select(dim, index)

    args, kwargs = _tree.rebuild((inputs.args, inputs.kwargs), change, objects=True)
    return Inputs(*args, **kwargs)


def find_inputs(model: nn.Module, example: InputsLike | None, specs: Mapping[str, Any] | None = None) -> InputsLike:
    """Example inputs from the caller, else from the rules file's `inputs:` section, else from `dummy_inputs`.

    Raises:
        InputsError: where there are none.
    """
    if example is not None:
        return example
    if specs:
        return from_specs(specs)
    dummy = _tree.attribute(model, "dummy_inputs")
    if isinstance(dummy, Mapping) and dummy:
        return Inputs(**dummy)
    raise InputsError(
        f"No example inputs for {type(model).__name__}: pass example_inputs (on the command line "
        "`--input NAME=f32[8,3,32,32]` or `--inputs MODULE:NAME`), or give the rules file an `inputs:` "
        "section (name: {shape: [8, 3, 32, 32]} for each argument of forward)."
    )


def from_specs(specs: Mapping[str, Any]) -> Inputs:
    """Random inputs as an `inputs:` section describes them: `shape`, `dtype`, and for integers `range`."""
    generator = torch.Generator().manual_seed(0)
    flat = {name: _random(name, spec, generator) for name, spec in specs.items()}
    return Inputs(**_nested(flat))


def _random(name: str, spec: Any, generator: torch.Generator) -> torch.Tensor:
    dtype = getattr(torch, spec.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise InputsError(f"inputs: {name}: dtype {spec.dtype!r} is not a torch dtype; say float32, int64, bool, ...")
    shape = tuple(spec.shape)
    if dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
    low, high = spec.range or (0, 2)
    return torch.randint(int(low), int(high), shape, generator=generator).to(dtype)


def _nested(flat: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """`{"batch.audio": a, "inputs.0": b}` as `{"batch": {"audio": a}, "inputs": [b]}`."""
    root: dict[str, Any] = {}
    for name, tensor in flat.items():
        place = root
        *parents, last = name.split(".")
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = tensor

    def settle(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        settled = {key: settle(child) for key, child in value.items()}
        if settled and all(key.isdigit() for key in settled):
            return [settled[key] for key in sorted(settled, key=int)]
        return settled

    return {key: settle(child) for key, child in root.items()}


Factory = Callable[[int], InputsLike]
