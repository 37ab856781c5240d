"""Whether more positions of f may follow, alone, after a call in which f and g met: decoding with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

_JOINING = ("cat", "concat", "concatenate")


class Meeting(Protocol):
    """What is asked of a site."""

    @property
    def scatter(self) -> Any: ...

    @property
    def into_is_f(self) -> bool: ...

    @property
    def point_call(self) -> str: ...


def continues(site: Meeting, f_axes: Sequence[int], f: Sequence[int], out: Sequence[int]) -> bool:
    """Whether the meeting leaves positions of f that are f' and nothing else, and more of them may follow alone: f has
    another stream's values written over some positions, or joined to it on a position axis. `f` and `out`: shapes."""
    if len(f_axes) < 3 or len(f) != len(out):
        return False
    if site.scatter is not None:
        return site.into_is_f and not site.scatter.written and tuple(f) == tuple(out)
    differing = [axis for axis, (a, b) in enumerate(zip(f, out, strict=True)) if a != b]
    return site.point_call in _JOINING and len(differing) == 1 and differing[0] in tuple(f_axes)[2:]
