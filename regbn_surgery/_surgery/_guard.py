"""No silent bypass: notice when a method of the model fuses its branches without calling the forward that RegBN is in.

BLIP-2's `generate` runs its encoders and scatters their outputs itself; the owner's forward never runs, and RegBN
would be left out without a word. So the layers that make f and g of a site are watched: where one call of a method of
the model runs both of them while the forward of their host is not on the stack, that is an error. One of them alone
is somebody who wants features, and so are calls from outside the model.
"""

from __future__ import annotations

import sys
import threading
import weakref
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn

from .._errors import RegBNBypassedError

ATTRIBUTE = "_regbn_host"
RECORD = "_regbn_surgery"
#: What the modalities of a rewritten model are, for `verify`.
MODALITIES = "_regbn_modalities"
#: Recomputation and the backward pass call layers again, from wherever they are started.
_REPLAYS = ("torch/utils/checkpoint.py", "torch/autograd/__init__.py", "torch/autograd/graph.py")
_MACHINERY = "torch/nn/modules/module.py"


class _State(threading.local):
    def __init__(self) -> None:
        self.active: list[str] = []  # hosts whose forward (or interposed method) is on this thread's stack
        #: By host and site: a call of a method, and the sides made in it.
        self.seen: dict[tuple[str, str], tuple[Any, set[str]]] = {}


_state = _State()


class on_the_stack:  # noqa: N801
    """The forward of the host known by `token` runs within `with`."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.depth = 0

    def __enter__(self) -> None:
        active = _state.active
        self.depth = len(active)
        active.append(self.token)

    def __exit__(self, *_: object) -> None:
        del _state.active[self.depth :]


@dataclass(frozen=True)
class Guard:
    """Forward pre-hook of a layer that makes one side of a site. Knows the host by a token, so that a copy or a pickle
    of the layer alone does not drag the host along."""

    token: str
    site: str
    side: str  # "f" or "g"
    host: str  # for people

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or self.token in _state.active:
            return
        frame = _calling_method(sys._getframe(1), self.token)
        if frame is None:
            return
        call = _call_of(frame)
        before, sides = _state.seen.get((self.token, self.site), (None, set()))
        sides = {self.side} | (sides if before == call else set())
        _state.seen[self.token, self.site] = (call, sides)
        if sides == {"f", "g"}:
            raise RegBNBypassedError(_message(self, frame))


class _Mark:
    """Put where only tracers look, and only while they trace."""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        return None


def _call_of(frame: FrameType) -> Any:
    """What tells one call of a function from the next, and equals nothing once the call is over: the frame of the next
    one often lies at the same address, and to hold on to the frame would hold on to the tensors in it."""
    if frame.f_trace is None:
        frame.f_trace = _Mark()
    return weakref.ref(frame.f_trace) if isinstance(frame.f_trace, _Mark) else (id(frame), frame.f_code)


def _calling_method(frame: FrameType | None, token: str) -> FrameType | None:
    """The outermost method of the rewritten model in which we are, if RegBN's host does not run, and nothing is being
    computed again."""
    found: FrameType | None = None
    while frame is not None:
        code = frame.f_code
        if code.co_filename.endswith(_REPLAYS):
            return None
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not code.co_filename.endswith(_MACHINERY):
            surgery = owner.__dict__.get(ATTRIBUTE)
            if surgery is not None and surgery.token == token and "forward" in code.co_name:
                return None  # the host's forward, in pieces that torch.compile has made of it
            if _holds(owner, token):
                found = frame
        frame = frame.f_back
    return found


def _holds(module: nn.Module, token: str) -> bool:
    """Whether the host is in `module`, and `module` in the rewritten model (or is it)."""
    inside = list(module.modules())
    mine = any(getattr(m.__dict__.get(ATTRIBUTE), "token", None) == token for m in inside)
    return mine and not any(RECORD in m.__dict__ for m in inside[1:])


def _message(guard: Guard, frame: FrameType) -> str:
    owner, code = frame.f_locals["self"], frame.f_code
    where = f"{type(owner).__name__}.{code.co_name} ({code.co_filename}:{frame.f_lineno})"
    return (
        f"{where} computes both sides of RegBN `{guard.site}` without calling the forward of {guard.host}, which "
        "contains that RegBN: RegBN would be skipped. If the method fuses the two as forward does, list it in the "
        f"rule (`methods: [{code.co_name}]`); if it only needs the features of both branches, call them one at a time "
        "from outside the model."
    )
