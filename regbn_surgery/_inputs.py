"""Example inputs: their forms, their names, and the same inputs at another batch size."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from . import _resizing, _tree
from ._codes import coded
from ._errors import InputsError
from ._misfits import misfit
from ._resizing import Way
from ._user_code import users_own


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


InputsLike = Any  # torch.Tensor | tuple | Mapping | Inputs | a list of two of them | Callable[[int], those]

#: The two batch sizes at which every model is run. Never 1: an axis of size 1 broadcasts, and means nothing.
BATCH_SIZES = (2, 3)


@dataclass(frozen=True)
class Batches:
    """The example inputs at two batch sizes; `large` is None where a second size cannot be made from the example.

    `longer` is a second example, of other lengths or for another path, where there is one, and `longer_large` the same
    with more samples. `given` is the example as
    the user has it (None where a function makes it), of `samples` samples. `others` are further readings of it, for a
    model that does not bear this one, the best first; the last one takes it as it is.
    """

    small: Inputs
    large: Inputs | None
    sizes: tuple[int, int]
    notes: tuple[str, ...] = field(default=())
    longer: Inputs | None = None
    longer_large: Inputs | None = None
    longer_sizes: tuple[int, int] = (0, 0)
    given: Inputs | None = None
    samples: int | None = None
    lists: tuple[str, ...] = ()  # names of the lists that have one item for each sample
    others: tuple[Batches, ...] = ()

    @property
    def first(self) -> Inputs:
        """A call that the model is known to bear: the example as it was given, where no function makes it."""
        return self.given or self.small

    def each(self) -> list[Inputs]:
        return [inputs for inputs in (self.small, self.large, self.longer) if inputs is not None]


def as_inputs(example: InputsLike) -> Inputs:
    """Bring any accepted form of example inputs to `Inputs`.

    Raises:
        InputsError: for a form that could mean two things.
    """
    if isinstance(example, Inputs):
        return example
    if are_two(example):
        return as_inputs(example[0])
    if isinstance(example, torch.Tensor):
        return Inputs(example)
    if isinstance(example, tuple) and not _tree.is_namedtuple(example):
        return Inputs(*example)
    if isinstance(example, Mapping):
        return Inputs(**{str(key): value for key, value in example.items()})
    if isinstance(example, np.ndarray) or _is_record(example):
        return Inputs(example)
    found = "a list" if isinstance(example, list) else f"{type(example).__module__}.{type(example).__qualname__}"
    raise InputsError(
        f"example_inputs is {found}. Give a tensor or a tuple (positional arguments), a dict (keyword arguments), "
        "Inputs(*args, **kwargs) for both or for one list, dict or object argument, "
        "[Inputs(...), Inputs(...)] for two examples of different lengths, sizes or paths, "
        "or a function from the batch size to any of these."
    )


def _is_record(example: InputsLike) -> bool:
    """Whether an example is an object with fields, which can only be one argument."""
    record = isinstance(example, SimpleNamespace) or dataclasses.is_dataclass(example) or _tree.is_namespace(example)
    return record and not callable(example) and not _tree.is_namedtuple(example)


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
        why = misfit(model.forward, inputs.kwargs, error)
        raise InputsError(
            f"The example inputs do not fit {type(model).__name__}.forward: {why}. Given: {inputs!r}.{hint}"
        ) from error
    return list(_tree.leaves(named, objects=True))


def named_tensors(model: nn.Module, inputs: Inputs) -> list[tuple[str, torch.Tensor]]:
    return [(name, leaf) for name, leaf in named_leaves(model, inputs) if isinstance(leaf, torch.Tensor)]


def make_batches(model: nn.Module, example: InputsLike) -> Batches:
    """The example at two batch sizes, by asking the user's function or by cutting and repeating samples.

    Where the example can be read in several ways, `others` has the rest of them.

    Raises:
        InputsError: for a batch of one sample, or inputs that do not fit the model.
    """
    if are_two(example):
        return _with_second(model, *map(as_inputs, example))
    if is_function(example):
        small, large = (as_inputs(_made(example, size)) for size in BATCH_SIZES)
        for inputs in (small, large):
            named_leaves(model, inputs)
        return Batches(small, large, BATCH_SIZES)
    first, *others = _readings(model, as_inputs(example))
    return replace(first, others=tuple(others))


def _made(function: Any, size: int) -> Any:
    name = getattr(function, "__qualname__", type(function).__name__)
    with users_own(f"`{name}`, which makes example inputs of a batch size, called with {size},", InputsError):
        return function(size)


def is_function(example: InputsLike) -> bool:
    """Whether an example is a function from the batch size to inputs."""
    return callable(example) and not isinstance(example, Inputs | torch.Tensor | Mapping)


def _list_names(model: nn.Module, inputs: Inputs, way: Way) -> tuple[str, ...]:
    """The names that a person would use of the lists that have an item for each sample."""
    call = (inputs.args, inputs.kwargs)
    lists = [_resizing.at(call, name) for name, part in way.parts.items() if part.kind == "items"]
    named = _tree.bind(model.forward, inputs.args, inputs.kwargs)
    return tuple(name for name, value in _tree.containers(named) if any(value is items for items in lists))


def _readings(model: nn.Module, inputs: Inputs) -> list[Batches]:
    """The example at two batch sizes in every way in which it can be read, the likeliest first."""
    named = named_leaves(model, inputs)
    if not any(_resizing.shape_of(leaf) for _, leaf in named):
        raise InputsError(f"The example inputs contain no tensor. Given: {inputs!r}.")
    shapes = ", ".join(f"{name} {list(leaf.shape)}" for name, leaf in named if isinstance(leaf, torch.Tensor))
    call = (inputs.args, inputs.kwargs)
    axis = shared_axis(model, inputs)
    ways: list[Way | None] = []
    if axis is not None and axis[1] > 1:
        ways += [_resizing.along(call, *axis, lists=False), _resizing.along(call, *axis, lists=True)]
    else:
        ways += [_resizing.by_segments(call)]
    # One row each may also be a batch of one, in a list of modalities; maps with one channel are images.
    rank = 3 if axis is not None and axis[1] < 2 else 1
    ways += [_resizing.by_items(call, rank), _resizing.by_multiples(call)]
    distinct = [way for i, way in enumerate(ways) if way is not None and way not in ways[:i]]
    found = [batches for way in distinct for batches in _sized(model, inputs, way)]
    if axis is not None and axis[1] < 2 and not found:
        raise InputsError(
            f"The inputs have batch size {axis[1]} ({shapes}). An axis of size 1 looks like one that "
            "broadcasts, and one sample has no batch statistics: give at least 2 samples."
        )
    why = f"the inputs share no batch axis ({shapes})" if axis is None else "no second batch size can be made of them"
    remedy = f"give example_inputs as a function of the batch size, or {SECOND_SIZE}"
    note = coded("RB011", f"{why}, so batch axes are unknown: {remedy}")
    return [*found, Batches(inputs, None, (0, 0), (note,), given=inputs)]


#: What a user can do where no other batch size can be made of the example.
SECOND_SIZE = "give a second example of another batch size, [one, other]"


def _sized(model: nn.Module, inputs: Inputs, way: Way) -> Iterator[Batches]:
    for sizes in way.counts():
        small, large = (_resized(inputs, way, size) for size in sizes)
        yield Batches(small, large, sizes, given=inputs, samples=way.samples, lists=_list_names(model, inputs, way))


def _resized(inputs: Inputs, way: Way, count: int) -> Inputs:
    if count == way.samples:
        return inputs
    args, kwargs = way.resized((inputs.args, inputs.kwargs), count)
    return Inputs(*args, **kwargs)


def are_two(example: InputsLike) -> bool:
    """Whether an example is a list of two calls. Two tensors in a list may also be one argument, and are none."""
    if type(example) is not list or len(example) != 2:
        return False
    return all(isinstance(item, Inputs | Mapping) or type(item) is tuple for item in example)


def _with_second(model: nn.Module, first: Inputs, second: Inputs) -> Batches:
    """Two examples: of other lengths or for another path, or of another batch size and nothing else."""
    readings, others = _readings(model, first), _readings(model, second)
    one, other = readings[0], others[0]
    together = [
        replace(reading, longer=further.small, longer_large=further.large, longer_sizes=further.sizes)
        for further in others
        for reading in readings
    ]
    sizes = one.samples, other.samples
    if sizes[0] is not None and sizes[1] is not None and _differ_in_size_alone(model, one, other):
        together.insert(0, Batches(first, second, (sizes[0], sizes[1]), given=first, samples=sizes[0]))
    elif one.large is None and named_shapes(model, first).keys() == named_shapes(model, second).keys():
        pair = _other_sizes(model, first, second)
        together[:0] = [] if pair is None else [Batches(first, second, pair, given=first, samples=pair[0])]
    return replace(together[0], others=tuple(together[1:]))


def _differ_in_size_alone(model: nn.Module, one: Batches, other: Batches) -> bool:
    """Whether two examples have other batch sizes, and the same shapes beside them."""
    if one.samples == other.samples or one.sizes != other.sizes:
        return False
    return named_shapes(model, one.small) == named_shapes(model, other.small)


def _other_sizes(model: nn.Module, first: Inputs, second: Inputs) -> tuple[int, int] | None:
    """The batch sizes of two examples that share no batch axis: how the first axis of most inputs differs."""
    shapes = zip(named_shapes(model, first).values(), named_shapes(model, second).values(), strict=True)
    pairs = Counter((a[0], b[0]) for a, b in shapes if a and b and a[0] != b[0])
    return None if not pairs else max(pairs, key=lambda pair: (pairs[pair], -pair[0]))


def named_shapes(model: nn.Module, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor and array of the inputs by its name; () for a number."""
    kinds = (torch.Tensor, np.ndarray, PackedSequence)
    return {name: _resizing.shape_of(leaf) for name, leaf in named_leaves(model, inputs) if isinstance(leaf, kinds)}


def shared_axis(model: nn.Module, inputs: Inputs) -> tuple[int, int] | None:
    """(axis, size) of the batch axis that the tensor inputs share, or None.

    Axis 0 where all agree on its size; else axis 1 (sequence-first models), unless it is the features of a `[N, C]`.
    Where both would do, layers of the model that say `batch_first=False` decide.
    """
    leaves = [leaf for _, leaf in named_leaves(model, inputs)]
    shapes = {i: shape for i, leaf in enumerate(leaves) if (shape := _resizing.shape_of(leaf))}
    candidates = []
    for dim in (0, 1):
        sizes = {shape[dim] for shape in shapes.values() if len(shape) > dim}
        if len(sizes) == 1 and all(len(shape) > dim for shape in shapes.values()):
            features = any(len(shape) == dim + 1 and _is_float(leaves[i]) for i, shape in shapes.items())
            if dim == 0 or not features:
                candidates.append((dim, sizes.pop()))
    if len(candidates) > 1 and _is_sequence_first(model):
        return candidates[1]
    return candidates[0] if candidates else None


def _is_float(leaf: Any) -> bool:
    if isinstance(leaf, torch.Tensor):
        return leaf.dtype.is_floating_point
    return isinstance(leaf, np.ndarray) and np.issubdtype(leaf.dtype, np.floating)


def _is_sequence_first(model: nn.Module) -> bool:
    flags = [_tree.attribute(module, "batch_first") for module in model.modules()]
    flags = [flag for flag in flags if isinstance(flag, bool)]
    return bool(flags) and not any(flags)


def find_inputs(model: nn.Module, example: InputsLike | None, specs: Mapping[str, Any] | None = None) -> InputsLike:
    """`known_inputs`, where there are any.

    Raises:
        InputsError: where there are none.
    """
    found = known_inputs(model, example, specs)
    if found is None:
        raise InputsError(
            f"No example inputs for {type(model).__name__}: pass example_inputs (on the command line "
            "`--input NAME=f32[8,3,32,32]` or `--inputs MODULE:NAME`), or give the rules file an `inputs:` "
            "section (name: {shape: [8, 3, 32, 32]} for each argument of forward)."
        )
    return found


def known_inputs(
    model: nn.Module, example: InputsLike | None, specs: Mapping[str, Any] | None = None
) -> InputsLike | None:
    """Example inputs from the caller, else from the rules file's `inputs:` section, else from `dummy_inputs`."""
    if example is not None:
        return example
    if specs:
        return from_specs(specs)
    dummy = _tree.attribute(model, "dummy_inputs")
    return Inputs(**dummy) if isinstance(dummy, Mapping) and dummy else None


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
