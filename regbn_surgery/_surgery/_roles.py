"""Which call of a shared owner is this? LXMERT calls one cross-attention twice per layer, with the modalities swapped.

A call is known by the expressions that lead to it from the common caller, so that a call that is left out, or comes
twice, exchanges no others. Where one expression makes calls of several roles (in a loop over pairs), these follow a
fixed cycle. The count starts anew with every forward of the caller, so that an exception, or a checkpoint's
recomputation, cannot put it out of step.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from .._codes import coded
from .._trace._source import user_frames
from .._user_code import warn_at_call
from ._compiling import constant_in_graphs
from ._functions import expression_of
from ._record import Way
from ._site import is_identity

#: The role of calls at which nothing meets, such as self-attention through the same module.
NO_ROLE = -1


@constant_in_graphs
def _thread() -> int:
    """The thread we are in; in a compiled graph the one that compiled it, which counts and resets in the same graph."""
    return threading.get_ident()


class Roles:
    """`cycle`: the roles of the calls in one forward of the caller. `ways`: by which expressions each role came."""

    def __init__(self, cycle: tuple[int, ...], ways: Iterable[tuple[Way, int]] = ()) -> None:
        self.cycle = cycle
        self.counts: dict[int, int] = {}  # by thread: a server may evaluate one model in several
        self.by_way: dict[Way, tuple[int, ...]] = {}
        for way, role in ways:
            self.by_way[way] = (*self.by_way.get(way, ()), role)
        self.functions = frozenset(step for way in self.by_way for step, _ in way)
        self.told = False

    def next(self) -> int:
        thread = _thread()
        count = self.counts.get(thread, 0)
        self.counts[thread] = count + 1
        if self.by_way and not torch.compiler.is_compiling():
            role = self._by_way()
            if role is not None:
                return role
        return self.cycle[count % len(self.cycle)]

    def _by_way(self) -> int | None:
        """The role by the expressions that have led here; None where these have several, or cannot be told."""
        here: list[tuple[str, int]] = []
        frames = user_frames()
        for code, offset, module in frames:
            if f"{module}:{code.co_qualname}" in self.functions:
                here.append((f"{module}:{code.co_qualname}", expression_of(code, offset)))
        if not here or any(ordinal < 0 for _, ordinal in here):
            return None
        # A checkpoint computes again what the outer functions are not around any more: then these cannot tell.
        found = {role for way, roles in self.by_way.items() if _leads(tuple(here), way) for role in roles}
        if found:
            return found.pop() if len(found) == 1 else None
        if not any(here[0][0] == way[0][0] for way in self.by_way):
            return None  # from elsewhere: through a wrapper, say
        if not self.told and not is_identity():
            self.told = True
            text = (
                f"{here[0][0]} calls a module in which RegBN has several roles, from an expression that the example "
                "did not reach, so it is not known which modalities it is given there. RegBN does not run in such "
                "calls. Give regbnify a second example that takes this path; later calls like this give no warning."
            )
            warn_at_call(coded("RB402", text))
        return NO_ROLE

    def reset(self) -> None:
        self.counts[_thread()] = 0

    def reset_for(self, tracer: Any) -> None:
        """The same, once for each graph: `symbolic_trace` calls no hook of a root, so `RoleReset` may not run."""
        seen = _seen_by_graphs.setdefault(tracer.graph, weakref.WeakSet())
        if self not in seen:
            seen.add(self)
            self.reset()


_seen_by_graphs: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Roles]] = weakref.WeakKeyDictionary()


def ways_of(ways: Sequence[tuple[Any, int]]) -> tuple[tuple[Way, int], ...]:
    """The expressions that lead to each call, by the functions that ran; empty where one of them cannot be told."""
    found = []
    for frames, role in ways:
        way = tuple((f"{module}:{code.co_qualname}", expression_of(code, offset)) for code, offset, module in frames)
        if not way or any(ordinal < 0 for _, ordinal in way):
            return ()
        found.append((way, role))
    return tuple(found)


def _leads(here: Way, way: Way) -> bool:
    """Whether the functions that run are those of the way, as far as both go."""
    shorter = min(len(here), len(way))
    return here[:shorter] == way[:shorter]


class RoleReset:
    """Forward pre-hook of the common caller."""

    def __init__(self, roles: Roles) -> None:
        self.roles = roles

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.roles.reset()
