"""Which inputs are modalities: the user's word, or by default every tensor input that carries content."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .._errors import InputsError
from .._ops import Value
from .._rules.patterns import PatternError, matches
from .._spelling import nearest
from .._trace import Trace
from .._types import ExcludedInput, Modality
from ._lineage import NOBODY, Lineage, Segments, fuse

#: Parts of names that mark an input as bookkeeping rather than content, by the words of DESIGN's default.
_BOOKKEEPING = re.compile(
    r"(^|[._])(\w*mask\w*|position\w*|\w*_pos|pos|type|\w*_type_ids?|types?|segment\w*|length\w*|lens?|labels?|targets?|"
    r"edge_index|edge_weights?|adj|adjacency|cache_position|indices|index)([._]|$)"
)
#: Fields that share one table are told apart by an offset, and ids without end are hashed into it (`ids`).
_PASSES_IDS: tuple[Value, ...] = (
    "reshapes", "permutes", "casts", "drops_out", "splits", "stretches", "repeats", "ids",
)  # fmt: skip


#: How a modality may be given: names of inputs, or a `Modality` for modules and for stretches of an input.
ModalityLike = Modality | Sequence[str]


@dataclass(frozen=True)
class Sources:
    modalities: tuple[Modality, ...]
    excluded: tuple[ExcludedInput, ...]


def find_sources(
    trace: Trace,
    modalities: Mapping[str, ModalityLike] | None,
    lists: Sequence[str] = (),
    second: Trace | None = None,
    *,
    partly: bool = False,
) -> Sources:
    """The modalities among the inputs of a trace, and the outputs of its modules.

    Args:
        trace: a run of the whole model.
        modalities: input names (or globs), or a `Modality`, by name; None takes every floating input, and every
            integer input that reaches an embedding table, as a modality of its own, bookkeeping such as masks and
            positions left out.

        lists: names of lists with one item for each sample, which are one modality where `modalities` is None.
        second: a run of another call, which may have inputs and call modules that `trace` has not.
        partly: whether the run may lack inputs and modules that `modalities` name.

    Raises:
        InputsError: for a name that fits no input or no module, or an input claimed by two modalities.
    """
    if modalities is None:
        chosen, excluded = _default(trace)
        if second is not None:
            known = {name for name, _ in trace.inputs}
            more, left_out = _default(second)
            chosen += [modality for modality in more if modality.name not in known]
            excluded += [item for item in left_out if item.name not in known]
        chosen = _joined(chosen, lists)
    else:
        traces = [trace] if second is None else [trace, second]
        spelt = {name: _spelt(name, given) for name, given in modalities.items()}
        chosen, excluded = _named(traces, spelt, partly=partly)
    return Sources(tuple(chosen), tuple(excluded))


def _spelt(name: str, given: ModalityLike) -> Modality:
    if isinstance(given, Modality):
        return given
    return Modality(name, (given,) if isinstance(given, str) else tuple(given))


def _default(trace: Trace) -> tuple[list[Modality], list[ExcludedInput]]:
    chosen, excluded = [], []
    embedded = _reaching_embeddings(trace)
    for name, uid in trace.inputs:
        info = trace.tensors[uid]
        marked = _BOOKKEEPING.search(name)
        if marked is not None:
            excluded.append(ExcludedInput(name, f"its name says bookkeeping (`{marked.group(2)}`), not content"))
        elif info.is_float or uid in embedded:
            chosen.append(Modality(name, (name,)))
        else:
            kind = str(info.dtype).removeprefix("torch.")
            excluded.append(ExcludedInput(name, f"{kind} values that reach no embedding table"))
    return chosen, excluded


def _joined(chosen: Sequence[Modality], lists: Sequence[str]) -> list[Modality]:
    """The samples of one list are one modality: `images.0` and `images.1` are `images`; of dicts, `batch.0.image` and
    `batch.1.image` are `batch.image`."""
    found: dict[str, list[str]] = {}
    for modality in chosen:
        around = next((name for name in lists if modality.name.startswith(f"{name}.")), None)
        below = modality.name.removeprefix(f"{around}.").partition(".")[2]
        name = modality.name if around is None else f"{around}.{below}" if below else around
        found.setdefault(name, []).extend(modality.inputs)
    return [Modality(name, tuple(inputs)) for name, inputs in found.items()]


def by_lists(modality: Modality, lists: Sequence[str]) -> Modality:
    """The modality with one name for all samples of a list, however many there are in another call."""
    names: dict[str, None] = {}
    for name in modality.inputs:
        around = next((each for each in lists if name.startswith(f"{each}.")), None)
        below = name.removeprefix(f"{around}.").partition(".")[2]
        names.setdefault(name if around is None else f"{around}.*.{below}" if below else around)
    return replace(modality, inputs=tuple(names))


def _reaching_embeddings(trace: Trace) -> set[int]:
    """Integer inputs whose values are looked up in a table, by following them through views and slices."""
    reached: dict[int, set[int]] = {uid: {uid} for _, uid in trace.inputs if not trace.tensors[uid].is_float}
    found: set[int] = set()
    for op in trace.calls:
        sources = set().union(*(reached.get(uid, set()) for uid in op.inputs))
        if not sources:
            continue
        looked_up = op.row.carries == "lookup" and trace.tensors[op.inputs[0]].parameter is not None
        if op.row.does("looks_up") or looked_up:
            found |= sources
        elif op.row.does(*_PASSES_IDS) and all(not trace.tensors[uid].is_float for uid in op.outputs):
            for uid in op.outputs:
                if str(trace.tensors[uid].dtype) != "torch.bool":
                    reached.setdefault(uid, set()).update(sources)
    return found


def _named(
    traces: Sequence[Trace], modalities: Mapping[str, Modality], *, partly: bool
) -> tuple[list[Modality], list[ExcludedInput]]:
    shapes = {name: trace.tensors[uid].shape for trace in reversed(traces) for name, uid in trace.inputs}
    names = list(dict.fromkeys(name for trace in traces for name, _ in trace.inputs))
    owners: dict[str, list[Modality]] = {}
    chosen = []
    for name, modality in modalities.items():
        matched: list[str] = []
        for pattern in modality.inputs:
            found = [item for item in names if matches_input(pattern, item)]
            if not found and not partly:
                raise InputsError(
                    f"Modality {name!r} names the input {pattern!r}, which the example inputs do not have; "
                    f"they have {', '.join(map(repr, names)) or 'no tensors'}.{_near(pattern, names)}"
                )
            matched.extend(item for item in found if item not in matched)
        settled = replace(modality, name=name, inputs=tuple(matched), slice=_settled(modality, matched, shapes))
        for item in matched:
            for other in owners.setdefault(item, []):
                _refuse_overlap(item, other, settled)
            owners[item].append(settled)
        for pattern in modality.modules:
            if not partly and not any(_roots(trace, pattern) for trace in traces):
                roots_of(traces[0], pattern, name)
        chosen.append(settled)
    # A mask that nobody names is no mistake: it is told as it is where nobody names anything.
    reasons = {item.name: item.reason for trace in reversed(traces) for item in _default(trace)[1]}
    excluded = [ExcludedInput(name, reasons.get(name, "no modality names it")) for name in names if name not in owners]
    return chosen, excluded


def _near(name: str, known: Sequence[str]) -> str:
    near = nearest(name, known)
    return "" if near is None else f" Did you mean {near!r}?"


def _settled(
    modality: Modality, inputs: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int, int | None] | None:
    """The stretch with its axis and ends counted from the front; `stop` stays None where it takes all the rest."""
    if modality.slice is None:
        return None
    dim, start, stop = modality.slice
    for name in inputs:
        shape = shapes[name]
        if not -len(shape) <= dim < len(shape):
            raise InputsError(
                f"Modality {modality.name!r} slices input {name!r} along axis {dim}, but its shape is {shape}."
            )
        size = shape[dim]
        low, high, _ = slice(start, stop).indices(size)
        if low >= high or (stop is not None and stop > size):
            raise InputsError(
                f"Modality {modality.name!r} takes {start}:{'' if stop is None else stop} of axis {dim} of input "
                f"{name!r}, which has {size} there (shape {shape})."
            )
        settled = dim % len(shape), low, None if stop is None else high
    return settled


def _refuse_overlap(name: str, first: Modality, second: Modality) -> None:
    claimed = f"Input {name!r} belongs to two modalities, {first.name!r} and {second.name!r}"
    if first.slice is None or second.slice is None:
        raise InputsError(f"{claimed}; give each a slice of it (`slice`), or assign it to one of them.")
    if first.slice[0] != second.slice[0]:
        raise InputsError(f"{claimed}, along different axes ({first.slice[0]} and {second.slice[0]}).")
    (_, low, high), (_, other_low, other_high) = first.slice, second.slice
    if (high is None or other_low < high) and (other_high is None or low < other_high):
        raise InputsError(f"{claimed}, and their slices overlap.")


def input_lineages(trace: Trace, modalities: Sequence[Modality]) -> dict[int, Lineage]:
    """The lineage of each input of the trace; an input cut between modalities is a concatenation of its stretches."""
    uids = dict(trace.inputs)
    whole = {name: _root(m.name) for m in modalities if m.slice is None for name in m.inputs}
    cut: dict[str, list[Modality]] = {}
    for modality in modalities:
        for name in modality.inputs if modality.slice is not None else ():
            cut.setdefault(name, []).append(modality)
    for name, owners in cut.items():
        if name not in uids:
            continue
        whole[name] = _stretches(owners, trace.tensors[uids[name]].shape)
    return {uids[name]: lineage for name, lineage in whole.items() if name in uids}


def _root(name: str) -> Lineage:
    home = frozenset({name})
    return Lineage(home, home)


def _stretches(owners: Sequence[Modality], shape: tuple[int, ...]) -> Lineage:
    dim = owners[0].slice[0] if owners[0].slice is not None else 0
    parts: list[tuple[int, Lineage]] = []
    place = 0
    for start, stop, name in sorted((m.slice[1], m.slice[2] or shape[dim], m.name) for m in owners if m.slice):
        if start > place:
            parts.append((start - place, Lineage(NOBODY, NOBODY)))
        parts.append((stop - start, _root(name)))
        place = stop
    if place < shape[dim]:
        parts.append((shape[dim] - place, Lineage(NOBODY, NOBODY)))
    return replace(fuse(part for _, part in parts), segments=Segments(dim, tuple(parts), None))


def module_lineages(trace: Trace, modalities: Sequence[Modality]) -> dict[int, list[tuple[int, Lineage]]]:
    """What begins a branch of its own at the output of a module: lineages by uid, by the operation after which."""
    roots: dict[int, list[tuple[int, Lineage]]] = {}
    for modality in modalities:
        lineage = replace(_root(modality.name), parametrised=True)
        for pattern in modality.modules:
            for after, uids in _roots(trace, pattern):
                roots.setdefault(after, []).extend((uid, lineage) for uid in uids)
    return roots


def roots_of(trace: Trace, pattern: str, modality: str) -> list[tuple[int, tuple[int, ...]]]:
    """(index of the last operation, tensors that come out) for each call of an outermost module that fits `pattern`.

    Raises:
        InputsError: where no module that fits was called.
    """
    found = _roots(trace, pattern)
    if not found:
        called = list(
            dict.fromkeys([f.path for f in trace.frames[1:]] + [op.module for op in trace.calls if op.module])
        )
        shown = ", ".join(map(repr, called[:12])) + (", ..." if len(called) > 12 else "")
        raise InputsError(
            f"Modality {modality!r} starts at modules {pattern!r}, but no module with such a path was called; called "
            f"were: {shown or 'none'}.{_near(pattern, called)}"
        )
    return found


def _roots(trace: Trace, pattern: str) -> list[tuple[int, tuple[int, ...]]]:
    found: list[tuple[int, tuple[int, ...]]] = []
    inside: set[int] = set()  # frames of fitting modules, and all below them
    for frame in trace.frames[1:]:
        if frame.parent in inside:
            inside.add(frame.index)
        elif _fits(pattern, frame.path):
            inside.add(frame.index)
            found.append((frame.end - 1, frame.outputs))
    for op in trace.calls:
        if op.module is not None and op.frame not in inside and _fits(pattern, op.module):
            found.append((op.index, op.outputs))
    return found


def matches_input(pattern: str, name: str) -> bool:
    """Whether a pattern names an input: exactly, as a glob, or as the container that holds it (`batch` > `batch.x`).

    The globs are those of rules files: `*` stays within one segment, `**` takes any number of them.
    """
    return name == pattern or name.startswith(pattern + ".") or _fits(pattern, name)


def _fits(pattern: str, name: str) -> bool:
    """Raises InputsError for a glob or regular expression that cannot be read."""
    try:
        return matches(pattern, name)
    except PatternError as error:
        raise InputsError(f"modalities: {error}") from error
