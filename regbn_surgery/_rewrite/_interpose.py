"""Tier 3: the host's own forward runs, in Python, and RegBN is called between its operations.

Nothing can be baked in, since nothing is captured: counters, caches, branches on values and Python's own random
numbers go on as they were. A function mode that is on in the host's own frame only knows the calls of a site by where
they stand in the user's code. Slower than a generated forward, and a graph break under `torch.compile`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily
from torch.utils.checkpoint import CheckpointFunction

from .. import _tree
from .._analyse import Take
from .._capture import _functions as fn
from .._capture import intercepting
from .._capture._source import current_source, kind_of_module
from .._errors import RegBNBypassedError, RewriteError
from ._bypass import refuse_going_on, remember_caches, remembered, tell_passed_by
from ._growing import called_with
from ._local import LocalSite
from ._memory import SPOILT, Met, hand_on
from ._onward import Going, Maker, Onward, continues
from ._scatter import run_scatter

Key = tuple[str, str, int, int]


class Leavable(Protocol):
    inside: bool


@contextmanager
def leaving(mode: Leavable) -> Iterator[None]:
    """Out of the host's frame: nothing is watched, and children run at full speed."""
    stack: list[Any] = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    on_top = bool(stack) and stack[-1] is mode  # while torch asks the mode, it is off the stack already
    mode.inside = True
    try:
        with _pop_mode_temporarily() if on_top else nullcontext():
            yield
    finally:
        mode.inside = False


class _Passage(TorchFunctionMode):
    """One run of the host's forward. Counts its calls as a capture does, and lets RegBN in at the sites' readers."""

    def __init__(
        self,
        host: nn.Module,
        sites: tuple[LocalSite, ...],
        met_before: Mapping[str, Met],
        refuse: Callable[[str, str], None],
    ) -> None:
        super().__init__()
        self.host = host
        self.refuse = refuse  # raises the error that a site cannot go on from a cache, and why
        self.sites = sites
        self.met_before = met_before  # by site, what the caches that the host was given hold of it
        self.going = Going()
        self.went_on: dict[str, list[Key]] = {}  # site -> the calls that read f' with the g of before
        self.strange: dict[str, str] = {}  # site -> a call that reads its f, and did not when f and g met
        self.keys: Counter[tuple[str, str, int]] = Counter()
        self.held: dict[tuple[str, str], Tensor] = {}  # (site, "f" or "g") -> the tensor to take
        self.turns: dict[tuple[str, str], int] = {}  # of those made in a loop: in which round
        self.results: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}  # site -> f, g, f', g'
        self.originals: dict[int, Tensor] = {}
        self.arguments: dict[str, Any] = {}  # of the host, by dotted name
        self.mask: Any = None  # of the torch module that attends, while it is called
        self.stretches: dict[tuple[str, Key], Any] = {}  # (site, earlier call that filled a part) -> the index it used
        self.inside = False
        self.regions: list[bool] = []  # checkpoints of the host's own that we are in, and whether gradients will ask
        self.reached: set[str] = set()  # sites that met in this call

    # -- calls of torch and of modules ------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        name = fn.name_of(func)
        if name == "__iter__":
            return iter(self.__torch_function__(torch.Tensor.unbind, types, (args[0], 0)))
        if fn.is_silent(func, name):
            return func(*args, **kwargs)
        return self._event(name, func, args, kwargs)

    def on_call(
        self, call: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.inside:
            return call(module, *args, **kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            with leaving(self):
                return call(module, *args, **kwargs)

        return self._event(kind_of_module(module), run, args, kwargs)

    def on_function(self, call: Callable[..., Any], cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.inside:
            return call(*args, **kwargs)
        if cls is CheckpointFunction:
            self.on_saved_tensors(entering=True)
            try:
                return call(*args, **kwargs)
            finally:
                self.on_saved_tensors(entering=False)

        def run(*args: Any, **kwargs: Any) -> Any:
            with leaving(self):
                return call(*args, **kwargs)

        return self._event(cls.__name__, run, args, kwargs)

    def on_saved_tensors(self, entering: bool) -> None:
        if entering:
            self.regions.append(not self.inside and torch.is_grad_enabled())
        else:
            self.regions.pop()

    def _run_here(self, site: LocalSite) -> Any:
        """The module of a site that is about to run."""
        if any(self.regions):
            raise RewriteError(
                f"RegBN `{site.name}` would run in a part of {type(self.host).__name__}.forward that is checkpointed "
                "there: computed again for the backward pass, that part would be without it. Checkpoint the layers, or "
                "the whole model, instead."
            )
        self.reached.add(site.name)
        return getattr(self.host, site.name)

    # -- sites ------------------------------------------------------------------------------------------------

    def _event(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        source = current_source()
        line = (name, source.file if source else "", source.line if source else 0)
        key: Key = (*line, self.keys[line])
        self.keys[line] += 1
        attends = name == "MultiheadAttention"
        self.mask = kwargs.get("key_padding_mask", args[3] if len(args) > 3 else None) if attends else None
        now: dict[int, Tensor] = {}
        args, kwargs = self._carry_on(key, args, kwargs)
        given = (args, kwargs)
        for site in self.sites:
            args, kwargs = self._substitute(site, key, args, kwargs, now)
        output = self._scattered(key, func, args, kwargs)
        self._follow(key, given, output)
        for site in self.sites:
            if site.scatter is not None and key in site.scatter.written:
                self.stretches[site.name, key] = args[1]
            for side, take in (("f", site.f), ("g", site.g)):
                turn = site.round_of(take.made[0], key) if take.made is not None else None
                if take.made is not None and turn is not None:
                    if site.made_in_loop(take):
                        self.turns[site.name, side] = turn
                    self.held[site.name, side] = _tree.tensors(output)[take.made[1]]
                    self.results.pop(site.name, None)
        return output

    def _scattered(self, key: Key, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call itself; where a site is at its writing, with RegBN's results written."""
        for site in self.sites:
            if site.scatter is None or site.f.at[0] != key:
                continue
            written = [self.stretches.get((site.name, earlier), self) for earlier in site.scatter.written]
            if self in written:
                break  # this time a stretch was filled otherwise
            module = self._run_here(site)
            with leaving(self):
                return run_scatter(module, site.scatter, site.into_is_f, func, args, kwargs, tuple(written))
        return func(*args, **kwargs)

    def start(self, arguments: dict[str, Any]) -> None:
        """Take what the sites take from the host's own arguments."""
        leaves = self.arguments = dict(_tree.leaves(arguments))
        self.going.arguments(leaves)
        for site in self.sites:
            for side, take in (("f", site.f), ("g", site.g)):
                tensor = leaves.get(take.argument) if take.argument is not None else None
                if isinstance(tensor, Tensor):
                    self.held[site.name, side] = tensor

    def _substitute(
        self, site: LocalSite, key: Key, args: tuple[Any, ...], kwargs: dict[str, Any], now: dict[int, Tensor]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with a site's results in them. `now` is what earlier sites at this call have put in
        place of a tensor."""
        if site.scatter is not None:
            return args, kwargs
        reads_f = any(site.matches(reader, key) for reader, _ in site.f.readers)
        reads_g = site.replace_g and any(site.matches(reader, key) for reader, _ in site.g.readers)
        tensors: list[Tensor] | None = None
        together = site.f.at[0] == site.g.at[0]  # both are read by the fusion call itself, whoever made them
        for side, take in (("f", site.f), ("g", site.g)):
            unmade = take.made is None and take.argument is None
            if (together or unmade) and site.matches(take.at[0], key):
                tensors = tensors or _tree.tensors((args, kwargs))
                found = tensors[take.at[1]]
                originals = {id(new): old for old, new in self._replaced(now)}
                self.held[site.name, side] = originals.get(id(found), found)
        if not reads_f and not reads_g:
            return args, kwargs
        readers = (*site.f.readers, *(site.g.readers if site.replace_g else ()))
        turns = {n for reader, _ in readers if (n := site.round_of(reader, key)) is not None}
        f_first, g_first = self._held(site, set() if together else turns)
        f, g, f_new, g_new = self._normalised(site, now.get(id(f_first), f_first), now.get(id(g_first), g_first))
        self.originals[id(f_first)], self.originals[id(g_first)] = f_first, g_first
        if reads_f:
            now[id(f_first)] = f_new
        if reads_g:
            now[id(g_first)] = g_new

        def change(_: str, leaf: Any) -> Any:
            if reads_f and leaf is f:
                return f_new
            return g_new if reads_g and leaf is g else leaf

        return _exchanged(args, kwargs, change)

    # -- going on from a cache --------------------------------------------------------------------------------

    def _follow(self, key: Key, given: Any, output: Any) -> None:
        """Who makes and reads what, and at which call f and g meet: what a call without g will have to know."""
        if self.host.training:
            return
        self.going.call(key, given, output)
        for site in self.sites:
            if site.f.at[0] == key and site.g.at[0] == key and site.name in self.reached:
                tensors = _tree.tensors(given)
                f = tensors[site.f.at[1]] if site.f.at[1] < len(tensors) else None
                out = next(iter(_tree.tensors(output)), f)
                axes = getattr(self.host, site.name).f_axes
                if f is not None and out is not None and continues(site, axes, f.shape, out.shape):
                    self.going.meeting(site.name, key, f, output)

    def onward(self) -> dict[str, Onward]:
        found = {name: self.going.onward(name) for name in self.reached}
        return {name: onward for name, onward in found.items() if onward is not None}

    def _carry_on(
        self, key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Where a call reads f in place of what f and g were joined to, let it read f' with the g of before."""
        if not self.met_before:
            return args, kwargs
        new: dict[int, Tensor] = {}
        for tensor in _tree.tensors((args, kwargs)):
            value = tensor
            for names in self._chain(self.going.makers.get(tensor), key):
                for name in names:
                    try:
                        with leaving(self):
                            value = getattr(self.host, name).go_on(value, self.met_before[name])
                    except RegBNBypassedError as error:
                        self.refuse(name, str(error))
                        raise
                    self.went_on.setdefault(name, []).append(key)
            if value is not tensor:
                new[id(tensor)] = value
        if not new:
            return args, kwargs
        return _exchanged(args, kwargs, lambda _, leaf: new.get(id(leaf), leaf))

    def _chain(self, maker: Maker | None, reader: Key) -> Iterator[tuple[str, ...]]:
        """The sites that `reader` would find between itself and the call that made what it reads: one behind another
        where several modalities were written into one stream."""
        passed: tuple[str, ...] = ()
        first: Onward | None = None
        while maker is not None:
            site, onward = next(
                (
                    (site, met.onward)
                    for site in self.sites
                    if (met := self.met_before.get(site.name)) is not None
                    and met.onward is not None
                    and met.onward.maker == maker
                    and site.name not in self.reached
                ),
                (None, None),
            )
            if site is None or onward is None:
                break
            passed, first, maker = (*passed, site.name), first or onward, (site.f.at[0], 0)
            if reader in onward.joint:
                yield passed
                return
        if first is not None and reader not in first.apart:
            self.strange.setdefault(passed[0], str(current_source()))

    def unfinished(self) -> dict[str, str]:
        """Sites that a call goes on from without having come by them in any way; and why, if known."""
        left = {
            name: "" if met.pooled() is not None else SPOILT
            for name, met in self.met_before.items()
            if name not in self.reached and name not in self.went_on
        }
        found = {name: where for name, where in self.strange.items() if name not in self.reached}
        return left | {name: f"{where} reads them otherwise than before" for name, where in found.items()}

    def _replaced(self, now: dict[int, Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [(self.originals[identity], new) for identity, new in now.items()]

    def _held(self, site: LocalSite, turns: set[int]) -> tuple[Tensor, Tensor]:
        """Both sides; of what a loop makes, that of the round whose call reads (`turns`; any, where empty)."""
        f, g = self.held.get((site.name, "f")), self.held.get((site.name, "g"))
        made = {self.turns[place] for side in "fg" if (place := (site.name, side)) in self.turns}
        if f is None or g is None or (turns and not made <= turns):
            raise RewriteError(
                f"RegBN {site.name!r} cannot go into {type(self.host).__name__}, whose forward has to run as it is: "
                f"{current_source()} reads one side before the other exists. Compute both sides first, or normalise "
                "another point."
            )
        return f, g

    def _normalised(self, site: LocalSite, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        known = self.results.get(site.name)
        if known is not None and known[0] is f and known[1] is g:
            return known
        module = self._run_here(site)
        with leaving(self):
            f_new, g_new = module(f, g, mask=self.arguments.get(site.mask or "", self.mask))
        result = self.results[site.name] = (f, g, f_new, g_new)
        return result


def _exchanged(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[str, Any], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with some leaves exchanged. What holds none of them stays the object it is: a cache that is a
    dataclass is going to be written to."""

    def exchange(value: Any) -> Any:
        leaves = list(_tree.leaves(value))
        return value if all(change(name, leaf) is leaf for name, leaf in leaves) else _tree.rebuild(value, change)

    return tuple(exchange(value) for value in args), {name: exchange(value) for name, value in kwargs.items()}


@torch.compiler.disable(reason="RegBN is let into a forward that runs as it is (tier 3); see explain(model)")  # type: ignore[untyped-decorator, no-untyped-call]
def interposed(
    host: nn.Module,
    path: str,
    forward: Callable[..., Any],
    sites: tuple[LocalSite, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run the host's own forward with RegBN at `sites`.

    Raises:
        RewriteError: where one side of a site is read before the other exists.
        RegBNBypassedError: where a call goes on from a cache that RegBN had a part in, and cannot have one now.
    """
    # The forward comes unbound: dynamo hands a bound method on by its name, and by name it is the rewritten one.
    forward = forward.__get__(host)
    met_before = remembered(host, sites, args, kwargs)

    def refuse(name: str, why: str) -> None:
        refuse_going_on(host, path, [site for site in sites if site.name == name], args, kwargs, why)

    passage = _Passage(host, sites, met_before, refuse)
    passage.start(_tree.bind(forward, args, kwargs))
    with called_with(args, kwargs):
        with intercepting(passage), passage:
            output = forward(*args, **kwargs)
        for name, why in passage.unfinished().items():
            passage.refuse(name, why)
        if passage.reached:
            remember_caches(host, passage.reached, passage.onward(), args, kwargs, output)
        elif not met_before:
            tell_passed_by(host, path, sites, args, kwargs)
    if met_before:
        hand_on((args, kwargs), output)
    return output


__all__ = ["Take", "interposed"]
