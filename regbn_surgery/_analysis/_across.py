"""Pairs whose two places are called by different modules: layer by layer between two towers, for instance.

Both places are seen from the lowest common ancestor of the two callers, once the modules on the way down to them are
opened: their own calls are then the ancestor's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .._errors import PlanError
from .._trace import Trace


@dataclass(frozen=True)
class Spot:
    """The output of a module (its path as seen from the host), or an argument of the host.

    Of several tensors that the module returns it is number `output`, whichever of them another kind of call reads.
    Older records do not say it: there it is the first that is read.
    """

    module: str | None
    argument: str | None = None
    output: int | None = None


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


def first_read(trace: Trace, caller: int, outputs: Sequence[int]) -> int:
    """Of the tensors that a module returns the first that its caller reads, as `h` is of `_, h = self.gru(x)`."""
    reads = {uid for op in trace.calls if op.frame == caller for uid in op.inputs}
    reads.update(uid for frame in trace.frames if frame.parent == caller for _, uid in frame.inputs)
    reads.update(trace.frames[caller].outputs)
    return next((uid for uid in outputs if uid in reads), outputs[0])


def calls_of(trace: Trace, path: str) -> Iterator[tuple[int, Sequence[int]]]:
    """The calls of a module that return tensors: the frame of the caller, and the tensors."""
    for op in trace.calls:
        if op.module == path and op.outputs:
            yield op.frame, op.outputs
    for frame in trace.frames:
        if frame.path == path and frame.parent is not None and frame.outputs:
            yield frame.parent, frame.outputs


def seen_from(host: str, path: str) -> str:
    return path.removeprefix(f"{host}.") if host else path
