"""A host whose own forward has RegBN in it: what it knows, and what happens around each of its calls.

The rewritten forward is made from the sites when it is first needed, so that copies and pickles hold plain data: the
sites, and the text of the functions that surgery wrote into. A function that says something else by then is refused.
"""

from __future__ import annotations

import copy
import functools
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import nn

from ..nn._compilers import exporting
from ._bypass import refuse_going_on, refuse_unknown_caches, remember_caches, remembered
from ._changed import ChangedError, named_at, refuse_another
from ._classes import InstanceForward, original_class, unbound_forward, unbound_function
from ._compiling import outside_graphs
from ._functions import NoSourceError
from ._growing import Frame, called_with, enclosing_frame
from ._guard import on_the_stack
from ._hoist import hooked
from ._locate import Locator
from ._memory import forget_if_empty, hand_on, has_caches, mark_compiled
from ._methods import interposed_method
from ._missing import tell, tell_outside_graphs, untold, why_not
from ._mode import run_by_mode
from ._passage import Passage
from ._record import CodeSite, End, FunctionText, Place
from ._roles import NO_ROLE, Roles
from ._site import is_identity, site_at
from ._symbol_passage import NotFollowedError, SymbolPassage, first_tracer
from ._table import Returns, Table
from ._weave import behind_decorators
from ._woven import Slots, Woven, table_of, woven


class HostSurgery:
    """The sites of one host. `by_mode` says why its forward runs under a function mode; "" where it is rewritten."""

    def __init__(
        self,
        path: str,
        sites: tuple[CodeSite, ...],
        texts: tuple[FunctionText, ...],
        roles: Roles | None,
        writes_parameters: bool,
    ) -> None:
        self.path = path
        self.sites = sites
        self.texts = texts
        self.roles = roles
        self.writes_parameters = writes_parameters
        self.by_mode = ""
        self.token = uuid.uuid4().hex  # by which guards know it; a copy is guarded by copies that know the same
        self.compiled_role = 0
        self.compiled_passage: Passage | None = None  # of the call that is being compiled
        self.returns: Returns | None = None  # what a trial notes: see `lift`
        self.entry: FunctionType | None = None  # of a host by mode: the function whose body is the forward's
        self._forget()

    def lift(self, host: nn.Module) -> bool:
        """Take sides where helpers return them, in place of within: there it does not matter which way the helper goes.
        Uses what a trial has noted in `returns`; true where something has changed."""
        returns, self.returns = self.returns or {}, None
        lifted = tuple(_lifted(site, returns) for site in self.sites)
        if lifted == self.sites:
            return False
        self.sites = lifted
        self._forget()
        self.bind(host)
        return True

    def _forget(self) -> None:
        self.woven: Woven | None = None
        self.tables: dict[int, Table] = {}
        self.slots = Slots()

    def without(self, name: str) -> None:
        """Forget one site."""
        self.sites = tuple(site for site in self.sites if site.name != name)
        self._forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> HostSurgery:
        clone = HostSurgery(self.path, self.sites, self.texts, copy.deepcopy(self.roles, memo), self.writes_parameters)
        clone.by_mode, clone.token, clone.entry = self.by_mode, self.token, self.entry
        clone.woven, clone.tables, clone.slots = self.woven, self.tables, self.slots  # they know no instance
        return clone

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("woven", "tables", "slots", "compiled_passage", "entry", "returns")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.compiled_passage = self.entry = self.returns = None
        self._forget()

    def prepare(self, host: nn.Module) -> None:
        """Bind to the code that is there, once: after loading, and before any compiler looks.

        Raises:
            RewriteError: see `bind`.
        """
        if not self.tables:
            self.bind(host)

    # -- binding to the code that is there ----------------------------------------------------------------------------

    def bind(self, host: nn.Module) -> None:
        """Make the rewritten forward, or find that the forward has to run under a mode.

        Raises:
            RewriteError: where a function has changed since the sites were found, with the difference.
        """
        locator = Locator(original_class(host), unbound_function(host), vars(host).values(), self.texts)
        refuse_changed_functions(locator, self.sites, self.texts, named_at(original_class(host), self.path))
        if not self.by_mode:
            try:
                self.woven = woven(locator, self.sites)
            except NoSourceError as error:
                self.by_mode = str(error)
        if self.woven is not None:
            whole = self.woven.table
        else:
            whole = table_of(self.sites, self.slots, {}, True)
        self.tables = {role: whole.of_role(role) for role in {site.role for site in self.sites} | {0}}
        self.entry = locator.entry_of(self.sites) if self.by_mode else None

    def table_of(self, role: int) -> Table:
        return self.tables[role]

    passes_on = False

    @property
    def direct(self) -> FunctionType | None:
        """The rewritten forward where it can stand for the whole call: bound, and the same in every one."""
        forward = None if self.woven is None or self.roles is not None or self.woven.by_super else self.woven.forward
        return forward if isinstance(forward, FunctionType) else None

    def _call(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self.woven is not None, "bound, and not by mode"
        own = host.__dict__.get("forward")
        if isinstance(own, InstanceForward) and own.before is not None:
            return rebound(own.before, self.woven, host)(*args, **kwargs)
        return call_unbound(self.woven.forward, host, args, kwargs)

    # -- calls --------------------------------------------------------------------------------------------------------

    def run(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The host's forward, with RegBN in it."""
        if not self.tables:
            self.prepare(host)
        role = self.roles.next() if self.roles is not None else 0
        if role == NO_ROLE or role not in self.tables:  # a role may have no RegBN: left out by the plan, or folded
            return call_unbound(unbound_forward(host), host, args, kwargs)
        if self.by_mode:
            return self._run_by_mode(host, role, args, kwargs)
        if not torch.compiler.is_compiling():
            return self._run(host, role, args, kwargs)
        if self.woven is not None and self.woven.by_super:
            return self._run_outside_graphs(host, role, args, kwargs)
        return self._run_compiled(host, role, args, kwargs)

    def _run(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with on_the_stack(self.token), Frame(args, kwargs, host, role) as frame:
            self._begin(frame, args, kwargs)
            output = self._call(host, args, kwargs)
            self._end(frame, host, args, kwargs, output)
        return output

    @outside_graphs
    def _run_outside_graphs(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._run(host, role, args, kwargs)

    # -- calls with symbols in place of tensors: see `_symbolic` -------------------------------------------------------

    def follow(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The host's forward on symbols, with RegBN in it.

        Raises:
            NotFollowedError: where RegBN would be left out.
        """
        if not self.tables:
            self.prepare(host)
        return self._followed(host, functools.partial(self._call, host, args, kwargs), first_tracer((args, kwargs)))

    def forward_for_symbols(self, host: nn.Module) -> Any:
        """What the tracer is to take the signature of a root from."""
        if not self.tables:
            self.prepare(host)
        return unbound_forward(host) if self.woven is None else self.woven.forward

    def follow_root(self, host: nn.Module, run: Callable[..., Any], given: list[Any]) -> Any:
        """The same for a root; `run` is `forward_for_symbols`, called with `given`."""
        given = hooked(host, self.forward_for_symbols(host), run, given)
        return self._followed(host, functools.partial(run, *given), first_tracer(given))

    def _followed(self, host: nn.Module, call: Callable[[], Any], tracer: Any) -> Any:
        if self.roles is not None:
            self.roles.reset_for(tracer)
        role = self.roles.next() if self.roles is not None else 0
        if role == NO_ROLE or role not in self.tables:
            raise NotFollowedError("it is called in a role in which RegBN does not run")
        if self.by_mode:
            raise NotFollowedError(f"it runs under a function mode, which sees no symbols ({self.by_mode})")
        with on_the_stack(self.token), Frame((), {}, host, role) as frame:
            frame.passage_type = SymbolPassage
            output = call()
            passage, sites = frame.passage, self._sites(role)
            if passage is None:
                raise NotFollowedError("its forward is not the one that RegBN was inserted into")
            around = enclosing_frame(host)
            if around is not None:
                around.reached_within.update(passage.reached, frame.reached_within)
            left = [site for site in sites if site.name not in {*passage.reached, *frame.reached_within}]
            for site in left:
                if any((site.name, side) in passage.held for side in "fg"):
                    raise NotFollowedError(f"{why_not(site, passage)}, as far as symbols show (RegBN {site.name})")
            if left:
                self._tell_missing(host, left, passage, (), {})
        return output

    def _run_compiled(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.compiled_role = role
        output = self._call(host, args, kwargs)
        self.after_compiled(host, role, args, kwargs, output)
        return output

    def after_compiled(
        self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """What caches are to know of a call that is being compiled, and the user of a RegBN that it leaves out."""
        passage, self.compiled_passage, self.compiled_role = self.compiled_passage, None, 0
        if passage is not None and has_caches(args, kwargs, output):
            if passage.reached and not exporting():
                mark_compiled(tuple([site_at(host, name).token for name in passage.reached]), args, kwargs, output)
            elif not passage.reached:
                refuse_unknown_caches(host, self.path, self._sites(role), args, kwargs)
        if passage is not None and not exporting():
            for name, why in untold(host, self._sites(role), passage):
                tell_outside_graphs(host, self.path, name, why, args, kwargs)

    @outside_graphs
    def _run_by_mode(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with on_the_stack(self.token), Frame(args, kwargs, host, role) as frame:
            self._begin(frame, args, kwargs)
            output = run_by_mode(self, host, unbound_forward(host), frame, args, kwargs)
            self._end(frame, host, args, kwargs, output)
        return output

    def _begin(self, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if frame.host is not None and has_caches(args, kwargs):
            forget_if_empty(args, kwargs)
            frame.met_before = remembered(frame.host, self._sites(frame.role), args, kwargs)

    def _end(self, frame: Frame, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        passage = frame.passage
        sites = self._sites(frame.role)
        if passage is None:
            self._tell_missing(host, sites, None, args, kwargs)
            return
        for name, why in passage.unfinished().items() if passage.met_before else ():
            refuse_going_on(host, self.path, [site for site in sites if site.name == name], args, kwargs, why)
        if passage.reached and has_caches(args, kwargs, output):
            remember_caches(host, passage.reached, passage.lasting, args, kwargs, output)
        around = enclosing_frame(host)
        if around is not None:
            around.reached_within.update(passage.reached, passage.went_on, frame.reached_within)
        left = [site for site in sites if site.name not in passage.reached]
        left = [site for site in left if site.name not in passage.went_on and site.name not in frame.reached_within]
        if left:
            self._tell_missing(host, left, passage, args, kwargs)
        if frame.met_before:
            hand_on((args, kwargs), output)

    def _tell_missing(
        self,
        host: nn.Module,
        left: Sequence[CodeSite],
        passage: Passage | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """A call that did not come by some sites runs as it always did; the user is told once per site."""
        if passage is None or not passage.reached:
            refuse_going_on(host, self.path, left, args, kwargs)
        if not is_identity():
            for name, why in untold(host, left, passage):
                tell(host, self.path, name, why, args, kwargs)

    def run_method(self, host: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A further method that a rule names, with RegBN in it."""
        method = getattr(original_class(host), name).__get__(host)
        with on_the_stack(self.token), called_with(args, kwargs):
            sites = tuple(site for site in self.sites if name in site.methods)
            return interposed_method(host, name, method, sites, args, kwargs)

    def _sites(self, role: int) -> tuple[CodeSite, ...]:
        return tuple([site for site in self.sites if site.role == role])


def _lifted(site: CodeSite, returns: Returns) -> CodeSite:
    readers = (site.join, *site.f_readers, *site.g_readers)

    def end(side: str, before: End) -> End:
        known = returns.get((site.name, side), {})
        for steps in sorted(known):
            (index, *others) = known[steps]
            if before.maker is None or others or index < 0 or before.turn >= 0:
                continue
            way = before.maker.steps[:steps]
            # A helper that joins the side as well (in place, say) returns it when all is over.
            if not any(len(place.steps) > steps and place.steps[:steps] == way for place in readers):
                return replace(before, maker=Place(way, before.maker.op), output=index)
        return before

    return replace(site, f=end("f", site.f), g=end("g", site.g))


def call_unbound(forward: Any, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a forward with its module for its first argument. Where a graph breaks in it, dynamo looks a bound method up
    by its name again, and by its name it is the rewritten one."""
    if isinstance(forward, FunctionType):
        return forward(host, *args, **kwargs)
    return forward.__get__(host)(*args, **kwargs)


def rebound(before: Any, made: Woven, host: nn.Module) -> Callable[..., Any]:
    """A forward that the instance had of its own, with the rewritten function in it."""
    if isinstance(before, functools.partial):
        return functools.partial(rebound(before.func, made, host), *before.args, **before.keywords)
    bound: Callable[..., Any] = behind_decorators(before.__func__, made.replaced, made.inner).__get__(before.__self__)
    return bound


def refuse_changed_functions(
    locator: Locator, sites: Sequence[CodeSite], texts: Sequence[FunctionText], where: str
) -> None:
    """Raises ChangedError where a function is not what it was when the sites were found."""
    before = {text.name: text for text in texts}
    for site in sites:
        for place in site.places():
            try:
                locator.functions(place)
            except NoSourceError as error:
                if all(before[step.function].text for step in place.steps if step.function in before):
                    raise ChangedError(str(error), where) from error
    for now in locator.texts([place for site in sites for place in site.places()]):
        if now.name in before:
            refuse_another(before[now.name], now, where)
    for changed in locator.changed_without_name(texts):
        raise ChangedError(f"{changed} has changed since regbnify; it has no source to show.", where)


__all__ = ["HostSurgery", "refuse_changed_functions"]
