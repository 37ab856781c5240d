"""What one call of a rewritten forward knows: the tensors that its places made, and what RegBN made of them.

RegBN acts on f and g by identity: what their places returned in this very call. Another order of operands, a skipped
branch or another pair on the same line is thereby right, and so are recursion, threads and calls within calls, since
each call of the host has a passage of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import _tree
from ._early import VIEWS, Early
from ._growing import current_frame
from ._here import Here, TensorMethod, inside, run, run_positional, without_checkpoint
from ._onward import GoingOn
from ._operands import among, exchanged, now_of, placed, put, same
from ._record import MASK_POSITIONS, CodeSite, MaskArgument
from ._scatter import run_scatter
from ._site import is_identity, site_at
from ._table import ATTRIBUTE, At, Making, Path, Reading, Returns, SiteTable, Table


def enter(host: nn.Module, arguments: dict[str, Any]) -> Here:
    """Called first by the rewritten forward of a host."""
    surgery = host.__dict__[ATTRIBUTE]
    if torch.compiler.is_compiling():
        passage = surgery.compiled_passage = Passage(host, surgery.table_of(surgery.compiled_role), arguments)
        return Here(passage, ())
    frame = current_frame()
    mine = frame is not None and frame.host is host
    kind = Passage if frame is None or not mine or frame.passage_type is None else frame.passage_type
    passage = kind(host, surgery.table_of(frame.role if frame is not None and mine else 0), arguments)
    if frame is not None and mine and frame.passage is None:
        frame.passage = passage
        passage.returns = surgery.returns
        passage.met_before = frame.met_before
    return Here(passage, ())


class Passage(GoingOn):
    """One call of a host. Places tell it what they are about to call (`call`) and what they made (`made`)."""

    def __init__(self, host: nn.Module, table: Table, arguments: Mapping[str, Any]) -> None:
        self.host = host
        self.table = table
        self.around: Callable[[], AbstractContextManager[Any]] | None = None  # RegBN runs inside of it
        self.arguments: dict[str, Any] = dict(_tree.leaves(arguments)) if arguments else {}
        self.held: dict[tuple[str, str], Tensor] = {}  # (site, "f" or "g") -> the tensor that was made last
        self.results: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}  # site -> f, g, f', g'
        self.visits: dict[Path, int] = {}
        self.layers: dict[Path, Any] = {}  # place of a layer's call -> the layer that it called last
        self.inputs: dict[Path, Any] = {}  # place of a layer's call -> what it was given last
        self.stretches: dict[Path, Any] = {}  # place of an assignment -> the index that it used
        self.reached: list[str] = []  # sites at which RegBN ran
        self.early: list[Early] = []  # reads of one side before the other existed
        self.returns: Returns | None = None  # filled in trials
        self.written: Tensor | None = None  # the operand that the call at hand writes into
        self.used: list[tuple[str, str]] = []  # sides that RegBN has had since they were made last
        self.went_on: list[str] = []  # sites whose f' was made with the g that a cache has kept
        self.lasting: list[str] = []  # sites after which further positions of f may follow alone
        self.met_before: Mapping[str, Any] = {}  # by site, what the caches that the host was given have kept
        self._hold_arguments()

    # -- what values are: other things than tensors where a graph is made of symbols ----------------------------------

    def _is_tensor(self, value: Any) -> TypeGuard[Tensor]:
        return isinstance(value, Tensor)

    def _tensors(self, value: Any) -> list[Any]:
        return _tree.tensors(value)

    def _among(self, side: Any, tensors: list[Any]) -> Any:
        return among(side, tensors)

    def _same(self, a: Any, b: Any) -> bool:
        return same(a, b)

    def _exchanged(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], now: list[tuple[Any, Any]]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return exchanged(args, kwargs, now)

    def _hold_arguments(self) -> None:
        for name, side, argument in self.table.arguments:
            tensor = self.arguments.get(argument)
            if isinstance(tensor, Tensor):
                self.held[name, side] = tensor

    # -- what places tell ---------------------------------------------------------------------------------------------

    def visit(self, path: Path, func: Any, layer: Any, operands: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do the call of a place, with RegBN's results among its operands where sites say so. Of a method of a tensor,
        the tensor is among the operands. `layer`: what is called, for those who want to know which module it is."""
        at = self.table.places.get(path, _NOWHERE)
        now: list[tuple[Tensor, Tensor]] = []  # what stood in the call, and what stands there now
        written = operands[0] if at.writing and self._is_tensor(operands[0]) else None
        self.written = written
        for entry in at.takes:
            self._take(entry, path, operands, kwargs)
        if at.given:
            self.inputs[path] = next(iter(self._tensors((operands, kwargs))), None)
        for reading in at.readings:
            self._at_reader(reading, path, layer, operands, kwargs, now)
        if now:
            operands, kwargs = self._exchanged(operands, kwargs, now)
        output = NOTHING
        for entry in at.scatters:
            if output is NOTHING:
                output = self._scattered(entry, func, operands, kwargs)
        if output is not NOTHING:
            pass
        elif written is not None and operands[0] is not written:
            # The call would write into what RegBN returned: it writes into a copy, and what it wrote goes where it was.
            output = written.copy_(run(func, (operands[0].clone(), *operands[1:]), kwargs))
        else:
            output = self._do(path, func, operands, kwargs)
        if at.passing:
            self._pass_on(at, operands, kwargs, output)
        self._made(at, path, output, operands[1] if len(operands) == 3 else None, layer)
        if self.early and self.early[-1].path is None and self._is_tensor(output):
            self._note_view(path, func, operands, kwargs, output)
        return output

    def _do(self, path: Path, func: Any, operands: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        helpers = self.table.helpers.get(path)
        if helpers is None or isinstance(func, TensorMethod):
            return run(func, operands, kwargs)
        here = Here(self, path)
        if func is checkpoint and len(operands) > 0:  # RegBN in a part that is computed twice would count it twice
            func, operands, kwargs = operands[0], operands[1:], without_checkpoint(kwargs)
        func = inside(func, helpers, here)
        operands = tuple([inside(value, helpers, here) for value in operands])
        kwargs = {name: inside(value, helpers, here) for name, value in kwargs.items()}
        output = func(*operands, **kwargs)
        if self.returns is not None:
            self._note_return(path, output, self.returns)
        return output

    def _note_return(self, path: Path, output: Any, returns: Returns) -> None:
        """In a trial: whether a helper returns the very tensor that a place in it has made."""
        parts = [output] if isinstance(output, Tensor) else list(output) if type(output) in (tuple, list) else []
        for entry in self.table.sites:
            for side, maker in (("f", entry.f_maker), ("g", entry.g_maker)):
                if maker is None or len(maker) <= len(path) or maker[: len(path)] != path:
                    continue
                held = self.held.get((entry.name, side))
                index = next((i for i, part in enumerate(parts) if part is held), -1)
                if any(not isinstance(part, Tensor) for part in parts):
                    index = -1  # what stands where may differ from call to call
                returns.setdefault((entry.name, side), {}).setdefault(len(path), set()).add(index)

    def made(self, path: Path, value: Any) -> None:
        """A place has returned `value`."""
        self._made(self.table.places.get(path, _NOWHERE), path, value, None, None)

    def taken_apart(self, path: Path, value: Any) -> None:
        """A place takes a symbol apart: nothing to a passage of tensors. See `SymbolPassage`."""

    def _made(self, at: At, path: Path, value: Any, index: Any, layer: Any) -> None:
        """The same; of an assignment, `index` is where it wrote."""
        turn = -1
        if at.counted:
            turn = self.visits.get(path, 0)
            self.visits[path] = turn + 1
        if at.stretch:
            self.stretches[path] = index
        if at.layer:
            self.layers[path] = layer
        for making in at.makings:
            if self._is_round(making, turn):
                self._hold(making.entry, making.side, making.output, value)
        for entry in at.lasting:
            if entry.name in self.reached:
                self._see_join(entry, value)

    def _is_round(self, making: Making, turn: int) -> bool:
        end, layer = making.end, making.layer
        if end.given is not None and making.given is not None:
            given, argument = self.inputs.get(making.given), self.arguments.get(end.given[1])
            return given is not None and argument is not None and self._same(argument, given)
        if end.layer is not None and layer in self.layers:
            return self.layers[layer] is self.host.get_submodule(end.layer[1])
        return end.turn < 0 or end.turn == turn

    def _hold(self, entry: SiteTable, side: str, output: int, value: Any) -> None:
        if type(value) is Tensor:
            if output == 0:
                self._set(entry.name, side, value)
            return
        tensors = _tree.tensors(value)
        if output < len(tensors):
            self._set(entry.name, side, tensors[output])

    # -- sites --------------------------------------------------------------------------------------------------------

    def _at_reader(
        self,
        reading: Reading,
        path: Path,
        layer: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        now: list[tuple[Tensor, Tensor]],
    ) -> None:
        """A call that reads a side of the site is about to run: normalise, and note what it is to read instead."""
        entry, site = reading.entry, reading.entry.site
        if reading.onward and self.met_before:
            self._carry_on(entry, args, kwargs, now)
        if site.scatter is not None:
            return
        f_reads = reading.sides  # identity says which of the two is there
        g_reads = f_reads and site.replace_g
        if not f_reads and not (reading.join and self.early):
            return
        tensors = self._tensors((args, kwargs))
        f, g = self.held.get((site.name, "f")), self.held.get((site.name, "g"))
        if site.positions is not None:
            f, g = placed(f, g, tensors, site.positions, self._among)
        if site.operands and (f is None or g is None):
            return
        early = [read for read in self.early if read.site == site.name and (read.side is f or read.side is g)]
        missing = f is None or g is None or (not site.operands and self._stale(entry))
        if missing or not all([self._is_view_among(read, tensors) for read in early]):  # noqa: C419 - dynamo follows it
            for held, reads in ((f, f_reads), (g, g_reads)):
                if reads and held is not None and self._among(held, tensors) is not None:
                    self.early.append(Early(site.name, held))
            return
        assert f is not None, "else it is missing"
        assert g is not None, "else it is missing"
        mask = self._masks(site, layer, args, kwargs)
        if early:
            self._look_again(site, early, (f, g), mask, tensors, now)
            return
        f_there, g_there = self._among(f, tensors), self._among(g, tensors)
        if site.operands and (f_there is None or g_there is None):
            return
        if not (f_reads and f_there is not None) and not (g_reads and g_there is not None):
            return
        f_now, g_now = now_of(f, now), now_of(g, now)
        f_new, g_new = self._normalised(site, f_now, g_now, mask)
        if f_reads and f_there is not None:
            put(now, f_there, f_new)
        if g_reads and g_there is not None:
            put(now, g_there, g_new)

    def _note_view(
        self, path: Path, func: Any, operands: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        """A side was read before the other existed, by a call that only looks at it in another shape."""
        name = func.name if isinstance(func, TensorMethod) else getattr(func, "__name__", "")
        for read in self.early:
            if read.path is None:
                read.path = path
                if name in VIEWS:
                    read.call = (func, operands, kwargs, output)

    def _is_view_among(self, read: Early, tensors: list[Tensor]) -> bool:
        """Whether an early read only gave another view, which is one of the tensors."""
        return read.call is not None and self._among(read.call[3], tensors) is not None

    def _look_again(
        self,
        site: CodeSite,
        early: list[Early],
        sides: tuple[Tensor, Tensor],
        mask: Any,
        tensors: list[Tensor],
        now: list[tuple[Tensor, Tensor]],
    ) -> None:
        """Both sides exist, and one has been looked at already: the call gets the same look at what RegBN made of it.

        It has all of these looks among its operands. Where something else has read a side, or another call gets the
        result, RegBN stays out.
        """
        f, g = now_of(sides[0], now), now_of(sides[1], now)
        f_new, g_new = self._normalised(site, f, g, mask)
        new = [(sides[0], f_new), (sides[1], g_new if site.replace_g else sides[1])]
        for read in early:
            assert read.call is not None, "asked above"
            func, operands, kwargs, output = read.call
            put(now, output, run(func, *self._exchanged(operands, kwargs, new)))
        for side, result in new:
            there = self._among(side, tensors)
            if there is not None and result is not side:
                put(now, there, result)

    def _take(self, entry: SiteTable, path: Path, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A side that no call makes is what the call at `path` reads."""
        tensors = self._tensors((args, kwargs))
        for side, end, at in (("f", entry.site.f, entry.f_at), ("g", entry.site.g, entry.g_at)):
            if at == path and end.operand < len(tensors):
                self._set(entry.name, side, tensors[end.operand])

    def _set(self, name: str, side: str, tensor: Tensor) -> None:
        self.held[name, side] = tensor
        if self.used and (name, side) in self.used:
            self.used.remove((name, side))

    def _pass_on(self, at: At, operands: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A call that casts, copies or drops out has got a side: what it gives is the side from here on."""
        if not self._is_tensor(output):
            return
        given = self._tensors((operands, kwargs))[:1]  # a further one lends its type alone
        for entry in at.passing:
            for side in ("f", "g"):
                held = self.held.get((entry.name, side))
                if held is not None and held is not output and self._among(held, given) is not None:
                    self._set(entry.name, side, output)
                    break

    def follow(self, before: Tensor | None, after: Any) -> None:
        """`after` is `before` with zero added, as builtin `sum` begins: the side goes on there."""
        for (name, side), tensor in list(self.held.items()):
            if tensor is before and isinstance(after, Tensor):
                self._set(name, side, after)

    def _stale(self, entry: SiteTable) -> bool:
        """Whether one side is of an earlier round of a loop than the other: the one of this round is yet to come."""
        if not entry.looped:
            return False
        return ((entry.name, "f") in self.used) != ((entry.name, "g") in self.used)

    def _normalised(self, site: CodeSite, f: Tensor, g: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
        known = self.results.get(site.name)
        if known is not None and known[0] is f and known[1] is g:
            return known[2], known[3]
        self.reached.append(site.name)
        own_f, own_g = f, g
        if self.written is not None and not is_identity():
            # What the call is about to write into, RegBN may need as it is for its gradient.
            own_f, own_g = (side.clone() if side is self.written else side for side in (f, g))
        f_new, g_new = self._out_of_the_way(site_at(self.host, site.name), own_f, own_g, mask=mask)
        self.results[site.name] = (f, g, f_new, g_new)
        if site.f.looped and site.g.looped:
            for side in ("f", "g"):
                if (site.name, side) not in self.used:
                    self.used.append((site.name, side))
        return f_new, g_new

    def _out_of_the_way(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What RegBN does, inside of `around`."""
        if self.around is None:
            return run(*args, **kwargs)
        with self.around():
            return run(*args, **kwargs)

    def _masks(
        self, site: CodeSite, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...] | None:
        if not site.masks:
            return None
        return tuple([self._mask(mask, layer, args, kwargs) for mask in site.masks])

    def _mask(self, mask: MaskArgument, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What this call is given for a mask; None where it is given none."""
        if not mask.layer and mask.argument in self.arguments:
            return self.arguments[mask.argument]
        if mask.layer or isinstance(layer, nn.MultiheadAttention):
            position = MASK_POSITIONS.get(mask.argument, len(args))
            return kwargs.get(mask.argument, args[position] if layer is not None and position < len(args) else None)
        return None

    # -- scatter ------------------------------------------------------------------------------------------------------

    def _scattered(self, entry: SiteTable, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The writing call with RegBN's results written; `NOTHING` where this call writes something else."""
        site = entry.site
        assert site.scatter is not None, "asked for scatter sites alone"
        tensors = _tree.tensors((args, kwargs))
        if max(site.scatter.into, site.scatter.source) >= len(tensors):
            return NOTHING
        into, source = tensors[site.scatter.into], tensors[site.scatter.source]
        for side, tensor in (("f", into), ("g", source)) if site.into_is_f else (("g", into), ("f", source)):
            known = self.held.get((site.name, side))
            if tensor is source and known is not None and not same(known, source):
                return NOTHING
            self.held[site.name, side] = tensor
        if any(place not in self.stretches for place in entry.written):
            return NOTHING  # this time a stretch was filled otherwise
        self.reached.append(site.name)
        stretches = tuple([self.stretches[place] for place in entry.written])
        module = site_at(self.host, site.name)
        write = functools.partial(run_positional, func)
        mask = self._masks(site, None, args, kwargs)
        given = (module, site.scatter, site.into_is_f, write, args, kwargs, stretches, mask)
        return self._out_of_the_way(run_scatter, *given)


NOTHING = object()
_NOWHERE = At((), (), (), (), (), (), False, False, False, False, False)


__all__ = ["Here", "Passage", "enter"]
