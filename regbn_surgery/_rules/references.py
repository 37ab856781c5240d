"""References to single tensors, `input:NAME` and `module:PATH`, and pairs of them that are made by pattern.

`{f: 're:module:visual\\.layer(\\d)', g: 'module:audio.layer\\1'}` stands for one pair for each tensor that the
regular expression matches as a whole, with the groups filled into the other reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .patterns import PatternError, compile_pattern
from .problems import did_you_mean

HEADS = ("input", "module")
_BACK = re.compile(r"\\(?:(?P<number>[1-9][0-9]?)|g<(?P<name>[A-Za-z_]\w*|[0-9]{1,2})>|(?P<other>.?))", re.DOTALL)


@dataclass(frozen=True)
class Wrong:
    """What is wrong with the reference of one letter, or with both together (`letter` empty)."""

    letter: str
    text: str


def is_pattern(reference: str) -> bool:
    """Whether a reference is a regular expression over references."""
    return reference.startswith("re:")


def is_template(reference: str) -> bool:
    """Whether a reference is to be completed with what a regular expression matched."""
    return "\\" in reference and not is_pattern(reference)


def wrongs(f: str | None, g: str | None) -> Iterator[Wrong]:
    """Everything that can be said against a pair without a model; None is a reference that is missing."""
    if f is None or g is None:
        if f is not None or g is not None:
            letter, own = ("f", f) if f is not None else ("g", g or "")
            if not is_pattern(own or "") and not is_template(own or ""):
                yield from (Wrong(letter, text) for text in _wrong_reference(own or "", ""))
        return
    if f == g:
        yield Wrong("", "f and g are the same tensor; nothing would be left of it")
    if is_pattern(f) and is_pattern(g):
        yield Wrong("g", "only one of f and g may be a regular expression; write the other with its groups, as in "
                    "`module:audio.layer\\1`")  # fmt: skip
        return
    for letter, own, other in (("f", f, g), ("g", g, f)):
        if is_pattern(own):
            try:
                compile_pattern(own)
            except PatternError as error:
                yield Wrong(letter, str(error))
        else:
            yield from (Wrong(letter, text) for text in _wrong_reference(own, other))


def _wrong_reference(own: str, other: str) -> Iterator[str]:
    head, colon, name = own.partition(":")
    if head not in HEADS or not colon:
        yield (
            f"`{own}` names no tensor: write `input:NAME` for an input or `module:PATH` for a module's output"
            + did_you_mean(head, HEADS)
        )
        return
    if not name or not all(name.split(".")):
        yield f"`{own}` lacks a name after `{head}:` or has an empty segment in it"
    if not is_template(own):
        return
    if not is_pattern(other):
        yield f"`{own}` refers to a group, but the other reference is no regular expression (`re:...`)"
        return
    try:
        groups = compile_pattern(other)
    except PatternError:
        return  # told where it stands
    for found in _BACK.finditer(own):
        if found["other"] is not None:
            yield f"`{own}`: `\\` is followed by the number of a group, as in `\\1`, or by `g<name>`"
        elif _group(found) not in {*range(1, groups.groups + 1), *groups.groupindex}:
            count = "has none" if not groups.groups else f"has {groups.groups}"
            yield f"`{own}` refers to group {_group(found)}, but `{other}` {count}"


def _group(found: re.Match[str]) -> int | str:
    name: str = found["number"] or found["name"]
    return int(name) if name.isdigit() else name


def expand(f: str, g: str, known: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs that two checked references stand for, in the order of `known`, all references of the model."""
    if not is_pattern(f) and not is_pattern(g):
        return [(f, g)]
    pattern, template = (f, g) if is_pattern(f) else (g, f)
    compiled = compile_pattern(pattern)
    pairs = []
    for reference in known:
        match = compiled.fullmatch(reference)
        if match is not None:
            other = _BACK.sub(lambda found, match=match: match.group(_group(found)) or "", template)  # type: ignore[misc]
            pairs.append((reference, other) if pattern is f else (other, reference))
    return pairs
