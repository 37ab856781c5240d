"""Pairs whose two places are called by different modules: layer by layer between two towers, for instance.

Both places are seen from the lowest common ancestor of the two callers, once the modules on the way down to them are
opened: their own calls are then the ancestor's.
"""

from __future__ import annotations

from dataclasses import dataclass

from .._errors import PlanError
from .._trace import Trace


@dataclass(frozen=True)
class Spot:
    """The output of a module (its path as seen from the host), or an argument of the host."""

    module: str | None
    argument: str | None = None


@dataclass(frozen=True)
class Across:
    """Where f and g are, and the modules that have to be opened, by their paths as seen from the host."""

    f: Spot
    g: Spot
    opened: tuple[str, ...]


def common_frame(trace: Trace, first: int, second: int, words: tuple[str, str]) -> tuple[int, tuple[str, ...]]:
    """The frame of the lowest common ancestor, and the paths of the modules on the ways down from it.

    Raises:
        PlanError: where a module on the way is made inside forward, so that it has no place in the model.
    """
    chains = [_chain(trace, first), _chain(trace, second)]
    shared = [a for a, b in zip(*chains, strict=False) if a == b]
    common = shared[-1]
    down = dict.fromkeys(trace.frames[i].path for chain in chains for i in chain[len(shared) :])
    if "?" in (*down, trace.frames[common].path):
        raise PlanError(
            f"pair: {words[0]} and {words[1]} are called by modules that forward creates anew in each call, so RegBN "
            "cannot be registered there; name two other modules"
        )
    return common, tuple(down)


def _chain(trace: Trace, index: int | None) -> list[int]:
    chain: list[int] = []
    while index is not None:
        chain.append(index)
        index = trace.frames[index].parent
    return chain[::-1]


def seen_from(host: str, path: str) -> str:
    return path.removeprefix(f"{host}.") if host else path
