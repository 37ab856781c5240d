"""Which inputs are modalities: the user's word, or by default every tensor input that carries content."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .._capture import Trace
from .._errors import InputsError
from .._types import ExcludedInput, Modality
from ._axes import CASTS, DROPOUTS, PERMUTES, SPLITS, VIEWS
from ._families import EMBEDDINGS, LOOKUPS
from ._lineage import Lineage

#: Parts of names that mark an input as bookkeeping rather than content, by the words of DESIGN's default.
_BOOKKEEPING = re.compile(
    r"(^|[._])(\w*mask\w*|position\w*|\w*_pos|pos|type|\w*_type_ids?|types?|segment\w*|length\w*|lens?|labels?|targets?|"
    r"edge_index|cache_position|indices|index)([._]|$)"
)
_PASSES_IDS = (
    VIEWS
    | PERMUTES
    | CASTS
    | DROPOUTS
    | SPLITS
    | {"__getitem__", "cat", "where", "masked_fill", "clamp", "new_zeros"}
    | {"expand", "expand_as", "broadcast_to", "repeat"}
)


@dataclass(frozen=True)
class Sources:
    modalities: tuple[Modality, ...]
    excluded: tuple[ExcludedInput, ...]
    lineages: Mapping[int, Lineage]


def find_sources(trace: Trace, modalities: Mapping[str, Sequence[str]] | None) -> Sources:
    """The modalities among the inputs of a trace.

    Args:
        trace: a run of the whole model.
        modalities: input names (or globs) by modality; None takes every floating input, and every integer input that
            reaches an embedding table, as a modality of its own, bookkeeping such as masks and positions left out.

    Raises:
        InputsError: for a name that fits no input, or an input claimed by two modalities.
    """
    if modalities is None:
        chosen, excluded = _default(trace)
    else:
        chosen, excluded = _named(trace, modalities)
    uids = dict(trace.inputs)
    lineages: dict[int, Lineage] = {}
    for modality in chosen:
        home = frozenset({modality.name})
        for name in modality.inputs:
            lineages[uids[name]] = Lineage(home, home)
    return Sources(tuple(chosen), tuple(excluded), lineages)


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


def _reaching_embeddings(trace: Trace) -> set[int]:
    """Integer inputs whose values are looked up in a table, by following them through views and slices."""
    reached: dict[int, set[int]] = {uid: {uid} for _, uid in trace.inputs if not trace.tensors[uid].is_float}
    found: set[int] = set()
    for op in trace.ops:
        sources = set().union(*(reached.get(uid, set()) for uid in op.inputs))
        if not sources:
            continue
        looked_up = op.name in LOOKUPS and trace.tensors[op.inputs[0]].parameter is not None
        if op.name in EMBEDDINGS or looked_up or op.name in ("one_hot", "index_select"):
            found |= sources
        elif op.name in _PASSES_IDS and all(not trace.tensors[uid].is_float for uid in op.outputs):
            for uid in op.outputs:
                if str(trace.tensors[uid].dtype) != "torch.bool":
                    reached.setdefault(uid, set()).update(sources)
    return found


def _named(trace: Trace, modalities: Mapping[str, Sequence[str]]) -> tuple[list[Modality], list[ExcludedInput]]:
    names = [name for name, _ in trace.inputs]
    owner: dict[str, str] = {}
    chosen = []
    for modality, patterns in modalities.items():
        wanted = [patterns] if isinstance(patterns, str) else list(patterns)
        matched: list[str] = []
        for pattern in wanted:
            found = [name for name in names if matches_input(pattern, name)]
            if not found:
                near = difflib.get_close_matches(pattern, names, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise InputsError(
                    f"Modality {modality!r} names the input {pattern!r}, which the example inputs do not have; "
                    f"they have {', '.join(map(repr, names)) or 'no tensors'}.{hint}"
                )
            matched.extend(name for name in found if name not in matched)
        for name in matched:
            if owner.setdefault(name, modality) != modality:
                raise InputsError(f"Input {name!r} is claimed by the modalities {owner[name]!r} and {modality!r}.")
        chosen.append(Modality(modality, tuple(matched)))
    chosen.sort(key=lambda m: list(modalities).index(m.name))
    excluded = [ExcludedInput(name, "no modality names it") for name in names if name not in owner]
    return chosen, excluded


def matches_input(pattern: str, name: str) -> bool:
    """Whether a pattern names an input: exactly, as a glob, or as the container that holds it (`batch` > `batch.x`)."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern) or name.startswith(pattern + ".")
