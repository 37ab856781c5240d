"""Which modalities are causal streams: what a model predicts at one of their positions sees no later one.

A decoder trained by teacher forcing is one, and what pools over its positions would tell it the answers. Found by
running the model as it is: once, with the last position of an input changed, and with the last but one changed. Where
these reach no other position, they may be padding, and two others are tried.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import _tree
from .._inputs import Inputs, named_tensors, shared_axis
from .._state import has_no_values, preserved, seeded
from .._trace import Trace, capture_values
from .._types import Modality
from ._layouts import same_calls

_Result = TypeVar("_Result")

#: What a model's own code raises on tokens that it does not expect at this place.
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
#: A difference below this share of a tensor's largest value is rounding.
_ROUNDING = 1e-5


#: Parts of an input's length at which it is changed to see which positions of a tensor follow.
_PARTS = (0.0, 1.0, 0.5, 0.25, 0.75)
#: The same where one place is enough, which must not be padding.
_FROM_THE_END = (1.0, 0.75, 0.5, 0.25, 0.0)


class _Order(enum.Enum):
    """What two neighbours show of the order of positions on the axes of an output."""

    CAUSAL = enum.auto()  # the earlier one reaches the later one, and not the other way round
    APART = enum.auto()  # each reaches its own place alone: padding, or a model that looks at each by itself
    NONE = enum.auto()


@dataclass(frozen=True)
class Streams:
    """Which modalities are causal, and which tensors of a run still have the positions of one.

    `trace` is the model's run in evaluation on `inputs`. Nothing is said of a model without weights, and of an input
    that the model refuses to see changed.
    """

    model: nn.Module
    inputs: Inputs
    trace: Trace
    modalities: Sequence[Modality]
    writes_parameters: bool = False

    def causal(self, names: Iterable[str]) -> frozenset[str]:
        """Those of the modalities `names` that are causal.

        A modality is causal if an output has an axis on which a change of one of its positions (the last, where that
        is no padding) shows first at one index, a change of the position before shows first at the index before that,
        and reaches the later one, too.
        """
        return frozenset(name for name in names if self._causal_inputs.get(name))

    def positional(self, home: Iterable[str], axes: Mapping[int, int]) -> frozenset[int]:
        """The tensors, of those whose uids are given with the axis in question, that are streams of a causal input.

        The positions along that axis follow the input's: what changes late in the input shows first further on than
        what changes early, in one and the same sample. Where the vectors of several texts were laid side by side, a
        change shows at its own text alone, whatever its place. What cannot be run is taken for a stream.
        """
        names = [name for modality in home for name in self._causal_inputs.get(modality, ())]
        return frozenset(uid for name in names for uid in self._runner.followers(name, axes))

    @functools.cached_property
    def _causal_inputs(self) -> Mapping[str, tuple[str, ...]]:
        if any(has_no_values(tensor) for tensor in (*self.model.parameters(), *self.model.buffers())):
            return {}
        return {m.name: tuple(name for name in m.inputs if self._runner.is_causal(name)) for m in self.modalities}

    @functools.cached_property
    def _runner(self) -> _Runner:
        return _Runner(self.model, self.inputs, self.trace, self.writes_parameters)


class _Runner:
    """Runs the model on changed copies of its inputs."""

    def __init__(self, model: nn.Module, inputs: Inputs, trace: Trace, writes_parameters: bool) -> None:
        self.model = model
        self.inputs = inputs
        self.trace = trace
        self.writes = writes_parameters
        shared = shared_axis(model, inputs)
        self.batch_dim = shared[0] if shared is not None else 0
        self.tensors = dict(named_tensors(model, inputs))
        self._plain: list[Tensor] | None = None

    def is_causal(self, name: str) -> bool:
        dim = self._positions(self.tensors.get(name))
        if dim is None:
            return False
        for position in _places(self.tensors[name], dim):
            later, before = (self._changed(self._run, name, dim, place) for place in (position, position - 1))
            if later is None or before is None:
                continue
            together = zip(self.plain, later, before, strict=False)
            length, samples = (self.tensors[name].shape[axis] for axis in (dim, 1 - dim))
            words = self._words(self.tensors[name], dim, position)
            orders = {order for outputs in together for order in self._orders(outputs, length, samples, words)}
            if _Order.CAUSAL in orders:
                return True
            if _Order.APART not in orders and any(_differ(self.plain, x) for x in (later, before)):
                return False
        return False

    def _words(self, tensor: Tensor, dim: int, position: int) -> list[bool]:
        """In which samples two neighbours are words: the same token twice is padding, or a place for an image, of which
        the one that is left takes the rows of the one that was changed."""
        if tensor.is_floating_point():
            return [True] * tensor.shape[1 - dim]
        same = tensor.select(dim, position) == tensor.select(dim, position - 1)
        same = same & (tensor != tensor.narrow(dim, 0, 1)).any(dim)  # an example of one token alone tells no places
        return [not found for found in same.tolist()]

    def _orders(
        self, outputs: tuple[Tensor, Tensor, Tensor], length: int, samples: int, words: Sequence[bool]
    ) -> Iterator[_Order]:
        """What an output shows, given as it was and for each of two changes: sample by sample, as padding differs."""
        shape = outputs[0].shape
        if any(output.shape != shape for output in outputs):
            return
        axis = self.batch_dim if len(shape) > self.batch_dim and shape[self.batch_dim] == samples else None
        for at in (slice(None),) if axis is None else (slice(i, i + 1) for i in range(samples)):
            plain, later, before = (x if axis is None else x.movedim(axis, 0)[at].movedim(0, axis) for x in outputs)
            order = _order(plain, later, before, axis, length)
            seen = any(words) if axis is None else words[at.start]
            yield order if seen or order is not _Order.CAUSAL else _Order.APART

    def followers(self, name: str, axes: Mapping[int, int]) -> frozenset[int]:
        """The tensors on whose axis the positions of an input show at different places; see `Streams.positional`."""
        dim = self._positions(self.tensors.get(name))
        assert dim is not None, "only inputs with positions are causal"
        run = functools.partial(self._values, axes)
        plain = run(self.inputs)
        length, samples = self.tensors[name].shape[dim], self.tensors[name].shape[1 - dim]
        found: set[int] = set()
        for sample in dict.fromkeys((0, samples - 1)):
            first: dict[int, set[int]] = {uid: set() for uid in axes}
            for position in dict.fromkeys(int(part * (length - 1)) for part in _PARTS):
                values = self._changed(run, name, dim, position, sample)
                if plain is None or values is None:
                    return frozenset(axes)
                for uid in axes.keys() - found:
                    where = _where(plain[uid], values[uid], axes[uid])
                    first[uid] |= {min(where)} if where else set()
                    if len(first[uid]) > 1:
                        found.add(uid)
                if len(found) == len(axes):
                    return frozenset(found)
        return frozenset(found)

    def _positions(self, tensor: Tensor | None) -> int | None:
        """The axis of an input that counts positions: of token ids `[B, L]`, or of `[B, L, C]`."""
        if tensor is None or tensor.dtype == torch.bool:
            return None
        if tensor.dim() != (3 if tensor.is_floating_point() else 2):
            return None
        dim = 1 - self.batch_dim
        return dim if tensor.shape[dim] >= 2 else None

    @property
    def plain(self) -> list[Tensor]:
        if self._plain is None:
            self._plain = self._run(self.inputs)
        return self._plain

    def _changed(
        self, run: Callable[[Inputs], _Result], name: str, dim: int, position: int, sample: int | None = None
    ) -> _Result | None:
        """What `run` gives for another value at one position (of one sample); None where the model refuses all."""
        tensor = self.tensors[name]
        for value in _other_values(tensor.select(dim, position), tensor):
            changed = tensor.detach().clone()
            place = changed.select(dim, position)
            if sample is None:
                place.copy_(value)
            else:  # what is left beside the positions is the batch axis, and the features of `[B, L, C]` behind it
                place[sample] = value[sample]
            try:
                return run(_with(self.inputs, tensor, changed))
            except _REFUSALS:
                continue
        return None

    def _run(self, inputs: Inputs) -> list[Tensor]:
        with self._as_it_is():
            args, kwargs = _tree.cloned((inputs.args, inputs.kwargs))
            return list(_tensors(self.model(*args, **kwargs)))

    def _values(self, wanted: Iterable[int], inputs: Inputs) -> dict[int, Tensor] | None:
        """The tensors of a run by uid; None where it made other calls than the known one."""
        with self._as_it_is():
            args, kwargs = _tree.cloned((inputs.args, inputs.kwargs))
            trace, values = capture_values(self.model, args, kwargs, frozenset(wanted))
        same = same_calls(self.trace, trace) and len(trace.tensors) == len(self.trace.tensors)
        return values if same else None

    @contextmanager
    def _as_it_is(self) -> Iterator[None]:
        with preserved(self.model, parameters=self.writes), seeded(), torch.no_grad():
            self.model.eval()
            yield


def _other_values(old: Tensor, tensor: Tensor) -> Iterator[Tensor]:
    """Values to put in place of `old`: for features anything, for tokens others of the example."""
    if tensor.is_floating_point():
        yield old * -0.5 + 1.0
        return
    # Never beyond what the example has: an index outside a table ends the work of a GPU for good.
    low, high = tensor.min(), tensor.max()
    if bool(low == high):
        yield old - 1 if int(low) > 0 else old + 1
        return
    yield torch.where(old > low, old - 1, old + 1)
    swapped = old.roll(1, 0)  # tokens of another sample
    if bool((swapped != old).any()):
        yield swapped
    yield torch.where(old < high, old + 1, old - 1)


def _with(inputs: Inputs, old: Tensor, new: Tensor) -> Inputs:
    args, kwargs = _tree.rebuild((inputs.args, inputs.kwargs), lambda _, leaf: new if leaf is old else leaf)
    return Inputs(*args, **kwargs)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Floating tensors of an output, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)


def _places(tensor: Tensor, dim: int) -> Iterable[int]:
    """Where to change an input: its end, the ends of the samples' contents, and some others; never its first position.

    A sample's content ends before what is repeated to its end.
    """
    length = tensor.shape[dim]
    rows = tensor.movedim(dim, 1).flatten(2) if tensor.dim() > 2 else tensor.movedim(dim, 1)[..., None]
    differs = (rows != rows[:, -1:]).any(2)  # [B, L]
    ends = [int(row.nonzero().max()) for row in differs if bool(row.any())]
    parts = [int(part * (length - 1)) for part in _FROM_THE_END]
    return dict.fromkeys(max(1, place) for place in (length - 1, *ends, *parts))


def _order(plain: Tensor, later: Tensor, before: Tensor, batch_dim: int | None, length: int) -> _Order:
    apart = False
    for dim, size in enumerate(plain.shape):
        if dim == batch_dim or size < length:
            continue
        late, early = _where(plain, later, dim), _where(plain, before, dim)
        if late and early and min(early) == min(late) - 1:
            if min(late) in early:
                return _Order.CAUSAL
            apart = apart or len(late) == len(early) == 1
        apart = apart or bool(late) != bool(early)  # padding that comes out as zero, beside a word
    return _Order.APART if apart else _Order.NONE


def _differ(plain: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether any output is another one."""
    pairs = zip(plain, others, strict=False)
    return any(a.shape != b.shape or bool(_where(a.reshape(1, -1), b.reshape(1, -1), 0)) for a, b in pairs)


def _where(plain: Tensor, other: Tensor, dim: int) -> set[int]:
    """Indices along `dim` at which two outputs differ."""
    old, new = plain.float(), other.float()
    known = torch.isfinite(old)  # what attends to padding alone is NaN, and no limit for the words beside it
    limit = _ROUNDING * float(old[known].abs().amax()) if bool(known.any()) else 0.0
    differs = ((new - old).abs() > limit) | (known != torch.isfinite(new))
    flat = differs.movedim(dim, 0).flatten(1).any(dim=1)
    return set(flat.nonzero().flatten().tolist())
