"""How a forward went on from the call at which both sides of a site met, to know the same place without that call.

A decoding step of a model that writes image tokens into its text skips the writing: the calls that read what came out
of it now read f itself. So a call with both tells who made f, who read the joint tensor and who read f; in a call
without the other side, f as its maker makes it is normalised for those who read the joint tensor, and for nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .. import _tree
from .._analyse._scatter import Scatter
from .._capture import Trace

Key = tuple[str, str, int, int]
#: The call that made a tensor and which of its outputs it is, or the argument of the host that it is.
Maker = tuple[Key, int] | str

_JOINING = ("cat", "concat", "concatenate")


@dataclass(frozen=True)
class Onward:
    """`joint`: the calls that read what came out of the meeting; `apart`: those that read f beside it."""

    maker: Maker
    joint: frozenset[Key]
    apart: frozenset[Key]


class Meeting(Protocol):
    """What is asked of a site."""

    @property
    def scatter(self) -> Scatter | None: ...

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


def onward_of(trace: Trace, key: Key, position: int) -> tuple[Onward, tuple[int, ...], tuple[int, ...]] | None:
    """In a captured run: how it went on from the call `key`, f being its tensor at `position`; shapes of f and of
    what came out. None where nobody made f."""
    meeting = next((op for op in trace.ops if op.key == key and op.frame == 0), None)
    if meeting is None or position >= len(meeting.inputs):
        return None
    f = meeting.inputs[position]
    out = meeting.outputs[0] if meeting.outputs else f
    maker: Maker | None = next((name for name, uid in trace.inputs if uid == f), None)
    for op in trace.ops[: meeting.index]:
        if maker is None and op.frame == 0 and f in op.outputs and f not in op.inputs:
            maker = (op.key, op.outputs.index(f))
    if maker is None:
        return None
    own = [op for op in trace.ops if op.frame == 0]
    joint = frozenset(op.key for op in own if op.index > meeting.index and out in op.inputs)
    apart = frozenset(
        op.key for op in own if f in op.inputs and op is not meeting and (out != f or op.index < meeting.index)
    )
    return Onward(maker, joint, apart), trace.tensors[f].shape, trace.tensors[out].shape


class Going:
    """The same for a forward that runs as it is: who makes and who reads each tensor of the host's own frame."""

    def __init__(self) -> None:
        self.makers: Any = WeakIdKeyDictionary()  # tensor -> Maker
        self.readers: Any = WeakIdKeyDictionary()  # tensor -> the calls that read it so far
        self.meetings: dict[str, tuple[Maker, frozenset[Key], Tensor, int]] = {}  # by site's name

    def arguments(self, leaves: Mapping[str, Any]) -> None:
        for name, leaf in leaves.items():
            if isinstance(leaf, Tensor):
                self.makers.setdefault(leaf, name)

    def call(self, key: Key, given: Any, output: Any) -> None:
        for tensor in _tree.tensors(given):
            self.readers.setdefault(tensor, []).append(key)
        for index, tensor in enumerate(_tree.tensors(output)):
            if tensor not in self.makers:
                self.makers[tensor] = (key, index)

    def meeting(self, name: str, key: Key, f: Tensor, output: Any) -> None:
        """The site's f met here; told after `call`."""
        out = next(iter(_tree.tensors(output)), f)
        maker = self.makers.get(f)
        if maker is not None:
            apart = frozenset(reader for reader in self.readers.get(f, ()) if reader != key)
            self.meetings[name] = (maker, apart, out, len(self.readers.get(out, ())))

    def onward(self, name: str) -> Onward | None:
        if name not in self.meetings:
            return None
        maker, apart, out, before = self.meetings[name]
        return Onward(maker, frozenset(self.readers.get(out, ())[before:]), apart)


__all__ = ["Going", "Maker", "Onward", "continues", "onward_of"]
