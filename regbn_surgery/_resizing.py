"""The same call with another number of samples: which axes of an example, and which of its lists, count samples.

An example says this in several ways: a batch axis that all tensors share, lists with one item for each sample, and
packed rows with a tensor beside them that says whose they are (`image_grid_thw`, `cu_seqlens`, lengths, the graph of
each node). Each reading is a `Way`; which of them the model bears, its own run says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import _tree

Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments

#: A tensor, a numpy array or a packed sequence, by its dotted name in a `Call`.
Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A part of the example that follows the number of samples.

    `axis`: axis `dim` of an array; `items`: the items of a list; `bounds`: cumulated lengths, `owners`: the segment of
    each row; `nodes`: rows named by their number. `units` are the samples, or what is counted in their stead (images);
    `rows` says how many rows each of them has.
    """

    kind: Literal["axis", "items", "bounds", "owners", "nodes"]
    units: int
    dim: int = 0
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Way:
    """One reading of an example: how many samples it has, and what follows their number."""

    samples: int
    parts: Mapping[str, Part]

    def bears(self, count: int) -> bool:
        """Whether the example can have that many samples: any number, or whole copies of it alone."""
        return count % self.samples == 0 or all(
            part.kind != "nodes" and part.units % self.samples == 0 for part in self.parts.values()
        )

    def counts(self) -> Iterator[tuple[int, int]]:
        """Pairs of batch sizes to try: small ones, and the example with its repetition."""
        tried = [(2, 3)] if self.samples < 2 else [(2, 3), (self.samples, 2 * self.samples)]
        yield from (pair for pair in tried if all(map(self.bears, pair)))

    def resized(self, call: Call, count: int) -> Call:
        """The call with `count` samples: the first ones, or all of them over and over again."""

        def change(name: str, leaf: Any) -> Any:
            part = self.parts.get(name)
            return leaf if part is None else _changed(leaf, part, self._chosen(part.units, count))

        made: Call = _tree.rebuild(call, change, objects=True, whole=self._is_list)
        return made

    def _is_list(self, name: str) -> bool:
        return name in self.parts and self.parts[name].kind == "items"

    def _chosen(self, units: int, count: int) -> list[int]:
        if units % self.samples == 0 and count % self.samples:
            each = units // self.samples
            return [sample % self.samples * each + i for sample in range(count) for i in range(each)]
        return [i % units for i in range(units * count // self.samples)]


def _changed(leaf: Any, part: Part, chosen: list[int]) -> Any:
    if part.kind == "items":
        items = [leaf[i] for i in chosen]
        return items if isinstance(leaf, list) else tuple(items)
    if isinstance(leaf, PackedSequence):
        padded, lengths = pad_packed_sequence(leaf, batch_first=True)
        return pack_padded_sequence(padded[chosen], lengths[chosen], batch_first=True, enforce_sorted=False)
    rows = part.rows or ()
    if part.kind in ("bounds", "owners"):
        lengths = torch.tensor([rows[i] for i in chosen])
        ends = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        return _like(leaf, ends if part.kind == "bounds" else torch.arange(len(chosen)).repeat_interleave(lengths))
    if part.kind == "nodes":
        copies = len(chosen) // part.units
        return _like(leaf, torch.cat([_tensor(leaf) + copy * sum(rows) for copy in range(copies)], dim=part.dim))
    if part.rows is not None:
        starts = np.cumsum([0, *rows])
        chosen = [row for i in chosen for row in range(int(starts[i]), int(starts[i]) + rows[i])]
    if isinstance(leaf, np.ndarray):
        return np.take(leaf, chosen, axis=part.dim)
    return leaf.detach().index_select(part.dim, torch.tensor(chosen, dtype=torch.long, device=leaf.device))


def _like(leaf: Any, made: torch.Tensor) -> Any:
    if isinstance(leaf, np.ndarray):
        return made.numpy().astype(leaf.dtype)
    return made.to(dtype=leaf.dtype, device=leaf.device)


def _tensor(leaf: Any) -> torch.Tensor:
    return torch.as_tensor(leaf).detach()


# -- the readings of an example ---------------------------------------------------------------------------------------


def arrays_of(call: Call) -> dict[str, Any]:
    """Every tensor, numpy array and packed sequence of the call that has an axis, by its name in it."""
    found = dict(_tree.leaves(call, objects=True))
    return {name: leaf for name, leaf in found.items() if shape_of(leaf)}


def shape_of(leaf: Any) -> tuple[int, ...]:
    """The shape of an array, samples first for a packed sequence; () for what is none and what has no axis."""
    if isinstance(leaf, PackedSequence):
        return (int(leaf.batch_sizes[0]), len(leaf.batch_sizes), *leaf.data.shape[1:])
    return tuple(leaf.shape) if isinstance(leaf, torch.Tensor | np.ndarray) else ()


def along(call: Call, dim: int, samples: int, *, lists: bool) -> Way:
    """The reading in which axis `dim` of each array that has `samples` there counts them; with `lists` those, too."""
    shapes = {name: shape_of(leaf) for name, leaf in arrays_of(call).items()}
    parts = {name: Part("axis", samples, dim) for name, s in shapes.items() if len(s) > dim and s[dim] == samples}
    found = dict(_lists(call)) if lists else {}
    return Way(samples, {**_with_lists(parts, found, samples)})


def by_items(call: Call, rank: int = 1) -> Way | None:
    """The reading in which a list of tensors, of `rank` axes or more, has one item for each sample."""
    found = dict(_lists(call))
    lengths = Counter(len(items) for items in found.values() if _holds_arrays(items, rank))
    if not lengths:
        return None
    samples = lengths.most_common(1)[0][0]
    shapes = {name: shape_of(leaf) for name, leaf in arrays_of(call).items()}
    parts = {name: Part("axis", samples) for name, shape in shapes.items() if shape[0] == samples}
    return Way(samples, _with_lists(parts, found, samples))


def _with_lists(parts: dict[str, Part], lists: Mapping[str, Sequence[Any]], samples: int) -> dict[str, Part]:
    taken = {name: Part("items", samples) for name, items in lists.items() if len(items) == samples}
    inside = tuple(f"{name}." for name in taken)
    return {**{name: part for name, part in parts.items() if not name.startswith(inside or ("\0",))}, **taken}


def _lists(call: Call) -> Iterator[tuple[str, Sequence[Any]]]:
    """The outermost lists among the arguments, with their names."""

    def below(value: Any, name: str, depth: int) -> Iterator[tuple[str, Sequence[Any]]]:
        if type(value) in (list, tuple) and value:
            yield name, value
            return
        for key, child in (_tree.items(value, objects=True) if depth < _tree.MAX_DEPTH else None) or ():
            yield from below(child, f"{name}.{key}", depth + 1)

    for place, arguments in enumerate(call):
        for key, child in _tree.items(arguments) or ():
            yield from below(child, f"{place}.{key}", 2)


def at(call: Call, name: str) -> Any:
    """What stands in the call under a dotted name."""
    value: Any = call
    for part in name.split("."):
        value = next(child for key, child in _tree.items(value, objects=True) or () if str(key) == part)
    return value


def _holds_arrays(value: Any, rank: int) -> bool:
    return any(len(shape_of(leaf)) >= rank for _, leaf in _tree.leaves(value, objects=True))


def by_multiples(call: Call) -> Way | None:
    """The reading in which some tensors have several rows for each sample: three images to a text."""
    sizes = {name: shape_of(leaf)[0] for name, leaf in arrays_of(call).items()}
    samples = min(sizes.values(), default=0)
    if samples < 2 or len(set(sizes.values())) < 2 or any(size % samples for size in sizes.values()):
        return None
    return Way(samples, {name: Part("axis", size) for name, size in sizes.items()})


# -- packed rows ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Segments:
    """What a small tensor of whole numbers says of others: how many of their rows belong to each of its units."""

    name: str
    kind: Literal["grid", "lengths", "bounds", "owners"]
    rows: tuple[int, ...]
    packed: Mapping[str, int]  # the arrays whose rows these are, with the axis of the rows


def by_segments(call: Call) -> Way | None:
    """The reading in which the rows of all samples are packed one after the other, and a tensor says whose they are."""
    arrays = arrays_of(call)
    found = [segments for name in arrays for segments in _segments(name, arrays)]
    if not found:
        return None
    packed = {name for segments in found for name in segments.packed}
    describing = {segments.name for segments in found if segments.kind != "lengths"}
    counted = Counter(shape_of(leaf)[0] for name, leaf in arrays.items() if name not in packed | describing)
    most = max(counted.values(), default=0)
    first = next((segments for segments in found if segments.kind != "grid"), found[0])
    samples = min((size for size, times in counted.items() if times == most), default=len(first.rows))
    parts: dict[str, Part] = {}
    for name, leaf in arrays.items():
        size = shape_of(leaf)[0]
        if name not in packed | describing and size % samples == 0:
            parts[name] = Part("axis", size)
    for segments in found:
        units = len(segments.rows)
        for name, dim in segments.packed.items():
            parts[name] = Part("axis", units, dim, segments.rows)
        kind = segments.kind
        if kind == "bounds" or kind == "owners":
            parts[segments.name] = Part(kind, units, 0, segments.rows)
        else:
            parts[segments.name] = Part("axis", units)
        parts |= {name: Part("nodes", units, 1, segments.rows) for name in _edges(arrays, segments)}
    return Way(samples, _with_lists(parts, dict(_lists(call)), samples))


def _segments(name: str, arrays: Arrays) -> Iterator[_Segments]:
    leaf = arrays[name]
    shape = shape_of(leaf)
    if isinstance(leaf, PackedSequence) or not 1 <= len(shape) <= 2 or not _is_whole(leaf):
        return
    values = _tensor(leaf).long().cpu()
    if len(shape) == 2:
        rows = values.prod(1)
        if shape[1] in (2, 3) and int(values.min()) > 0:
            yield from _described(name, "grid", rows, arrays)
        return
    steps = values.diff()
    if shape[0] > 1 and int(values[0]) == 0 and int(steps.min()) >= 0:
        yield from _described(name, "bounds", steps, arrays)
        if int(steps.max()) == 1:
            yield from _described(name, "owners", values.bincount(), arrays, itself=True)
    elif int(values.min()) >= 0:
        yield from _described(name, "lengths", values, arrays)


def _described(
    name: str,
    kind: Literal["grid", "lengths", "bounds", "owners"],
    rows: torch.Tensor,
    arrays: Arrays,
    *,
    itself: bool = False,
) -> Iterator[_Segments]:
    total = int(rows.sum())
    packed = {}
    for other, leaf in arrays.items():
        shape = shape_of(leaf)
        if other == name or isinstance(leaf, PackedSequence):
            continue
        if shape[0] == total:
            packed[other] = 0
        elif len(shape) > 1 and shape[:2] == (1, total):
            packed[other] = 1
    own = shape_of(arrays[name])[0] == total
    if total > 0 and packed and own == itself:
        yield _Segments(name, kind, tuple(rows.tolist()), packed)


def _edges(arrays: Arrays, segments: _Segments) -> Iterator[str]:
    """Pairs of rows named by their number, as graphs have them."""
    for name, leaf in arrays.items():
        shape = shape_of(leaf)
        if segments.kind == "owners" and len(shape) == 2 and shape[0] == 2 and shape[1] > 0 and _is_whole(leaf):
            values = _tensor(leaf)
            if int(values.min()) > -1 and int(values.max()) < sum(segments.rows):
                yield name


def _is_whole(leaf: Any) -> bool:
    if isinstance(leaf, torch.Tensor):
        whole = not leaf.dtype.is_floating_point and not leaf.dtype.is_complex and leaf.dtype != torch.bool
        return whole and not leaf.is_meta
    return isinstance(leaf, np.ndarray) and np.issubdtype(leaf.dtype, np.integer)
