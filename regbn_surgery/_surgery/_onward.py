"""Decoding with a key-value cache: whether more positions of f may follow alone after a meeting, and how they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from .. import _tree
from .._errors import RegBNBypassedError
from ._bypass import refuse_going_on
from ._growing import current_frame
from ._memory import SPOILT
from ._operands import among, now_of, put
from ._site import site_at
from ._table import ATTRIBUTE, SiteTable, Table

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


class GoingOn:
    """The part of a `Passage` that knows what caches have kept."""

    host: nn.Module
    table: Table
    held: dict[tuple[str, str], Tensor]
    reached: list[str]
    went_on: list[str]
    lasting: list[str]
    met_before: Mapping[str, Any]
    _out_of_the_way: Callable[..., Any]

    def _see_join(self, entry: SiteTable, output: Any) -> None:
        """Whether what came out of the join leaves positions of f alone, so that more of them may follow without g."""
        out = _tree.tensors(output)
        f = self.held.get((entry.name, "f"))
        axes = site_at(self.host, entry.name).f_axes
        if f is not None and out and continues(entry.site, axes, f.shape, out[0].shape):
            self.lasting.append(entry.name)

    def _carry_on(
        self,
        entry: SiteTable,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        now: list[tuple[Tensor, Tensor]],
    ) -> None:
        """The call reads f where it read the joined tensor before: it gets f' with the g of then."""
        chain = self._chain(entry)
        f = self.held.get((chain[0].name, "f")) if chain else None
        tensors = _tree.tensors((args, kwargs))
        there = None if f is None else among(f, tensors)
        if f is None or there is None:
            return
        value = now_of(f, now)
        for link in chain:
            met = self.met_before[link.name]
            try:
                if met.pooled() is None:
                    raise RegBNBypassedError(SPOILT)
                value = self._out_of_the_way(site_at(self.host, link.name).go_on, value, met)
            except RegBNBypassedError as error:
                self._refuse_to_go_on(link, str(error))
            self.went_on.append(link.name)
        put(now, there, value)

    def _refuse_to_go_on(self, entry: SiteTable, why: str) -> None:
        """Raises RegBNBypassedError, with the call and the remedy."""
        frame = current_frame()
        args, kwargs = ((), {}) if frame is None else (frame.args, frame.kwargs)
        refuse_going_on(self.host, self.host.__dict__[ATTRIBUTE].path, [entry.site], args, kwargs, why)

    def _chain(self, last: SiteTable) -> list[SiteTable]:
        """The sites between f and a call behind `last`: one behind another where several modalities were written into
        one stream. Empty where one of them ran in this call, or has nothing to go on from."""
        chain: list[SiteTable] = []
        entry: SiteTable | None = last
        while entry is not None:
            met = self.met_before.get(entry.name)
            if met is None or not met.lasting or entry.name in self.reached or entry.name in self.went_on:
                return []
            chain.insert(0, entry)
            before = [other for other in self.table.sites if other.join == entry.f_maker]
            entry = before[0] if before else None
        return chain

    def unfinished(self) -> dict[str, str]:
        """Sites that this call had to go on from without having come by them; and why, if known."""
        left = {}
        for name, met in self.met_before.items():
            if name not in self.reached and name not in self.went_on:
                left[name] = SPOILT if met.pooled() is None else self._why_not_on(name)
        return left

    def _why_not_on(self, name: str) -> str:
        entry = next((entry for entry in self.table.sites if entry.name == name), None)
        if entry is None or not entry.onward or (name, "f") not in self.held:
            return ""
        return f"this call reads them in another way than the earlier one, not with {entry.site.onward[0].op}"
