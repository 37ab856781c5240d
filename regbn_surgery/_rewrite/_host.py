"""A host whose forward is generated: one variant for each kind of call, captured, checked and kept.

Everything particular to the instance sits in its `HostSurgery`, so that copies and pickles are easy: compiled
functions are not pickled but made anew from the sites at the first call. The class around it is made in `_classes`.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .. import _tree
from .._analyse import MODEL_ERRORS
from .._capture import Trace, capture
from .._errors import CaptureError, RegBNBypassedError, RewriteError, UnseenCallError
from .._state import preserved, random_state, seeded
from ._bypass import refuse_going_on, refuse_unknown_caches, remember_caches, remembered, tell_passed_by
from ._calls import Key, Known, key_of, kind_of, own_arguments, sizes_of, spelled
from ._classes import original_class, original_forward, unbound_forward
from ._compare import difference
from ._growing import called_with
from ._guard import on_the_stack
from ._interpose import interposed
from ._local import LocalSite, Variant, build_variant
from ._memory import has_caches, mark_compiled
from ._methods import interposed_method
from ._opened import leaf_rule, refuse_hooks, settings_of, states
from ._reorder import without_dropout
from ._roles import NO_ROLE, Roles
from ._site import identity


class HostSurgery:
    """What a rewritten host knows: its sites, and its forward in as many variants as it has been called in ways."""

    def __init__(self, path: str, sites: tuple[LocalSite, ...], roles: Roles | None, writes_parameters: bool) -> None:
        self.path = path
        self.writes_parameters = writes_parameters
        self.sites = sites
        self.roles = roles
        self.variants: dict[Key, list[Known]] = {}
        self.opened = frozenset(path for site in sites if site.across is not None for path in site.across.opened)
        self.token = uuid.uuid4().hex  # by which guards know it; a copy is guarded by copies that know the same
        self.going_on: set[Key] = set()  # kinds of calls that go on from a cache without all that met in it
        self.interposing = ""  # why the forward has to run as it is (tier 3); empty while variants serve
        self.last: dict[bool, str] = {}  # by training flag, the last kind of call that was captured, for people

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "variants": {}, "going_on": set()}

    def __deepcopy__(self, memo: dict[int, Any]) -> HostSurgery:
        import copy

        clone = HostSurgery(self.path, self.sites, copy.deepcopy(self.roles, memo), self.writes_parameters)
        clone.variants = {key: list(known) for key, known in self.variants.items()}
        clone.interposing, clone.token, clone.last = self.interposing, self.token, dict(self.last)
        return clone

    def run(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The host's forward, with RegBN in it."""
        if torch.compiler.is_compiling():
            return self._run(host, args, kwargs)
        with on_the_stack(self.token):
            return self._run(host, args, kwargs)

    def run_method(self, host: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A further method that a rule names, with RegBN in it."""
        method = getattr(original_class(host), name).__get__(host)
        with on_the_stack(self.token), called_with(args, kwargs):
            sites = tuple(site for site in self.sites if name in site.methods)
            return interposed_method(host, name, method, sites, args, kwargs)

    def _run(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        original = original_forward(host)
        if self.opened:
            refuse_hooks(host, self.opened)
        role = self.roles.next() if self.roles is not None else 0
        if role == NO_ROLE:
            return original(*args, **kwargs)
        if self.interposing:
            return interposed(host, self.path, unbound_forward(host), self._sites(role), args, kwargs)
        compiling = torch.compiler.is_compiling()
        met = {} if compiling else remembered(host, self._sites(role), args, kwargs)
        if met and kind_of(key_of(host, role, args, kwargs)) in self.going_on:
            return interposed(host, self.path, unbound_forward(host), self._sites(role), args, kwargs)
        variant = self._variant(host, role, args, kwargs)
        if variant is None:
            return interposed(host, self.path, unbound_forward(host), self._sites(role), args, kwargs)
        if not met.keys() <= set(variant.sites):
            return self._go_on(host, role, args, kwargs)
        if not variant.sites:
            if not compiling:
                refuse_going_on(host, self.path, self._sites(role), args, kwargs)
            elif has_caches(args, kwargs):
                refuse_unknown_caches(host, self.path, self._sites(role), args, kwargs)
            return original(*args, **kwargs)
        if compiling:  # the fewer frames, the fewer that a break within splits once more
            output = _stored(host, variant, variant.function(host, *args, **kwargs))
            if not torch.compiler.is_exporting():
                mark_compiled(variant.tokens, args, kwargs, output)
            return output
        with called_with(args, kwargs):
            with _modes_restored():
                output = _stored(host, variant, variant.function(host, *args, **kwargs))
            remember_caches(host, variant.sites, variant.onward, args, kwargs, output)
        return output

    def _go_on(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that goes on from a cache without all that met in it: no variant knows the g of then, so that the
        forward runs as it is. Calls of this kind do so from now on, without being captured first."""
        if self.opened or host.training:
            refuse_going_on(host, self.path, self._sites(role), args, kwargs)
        self._check_interposed(host, role, args, kwargs, "it goes on from a cache")
        self.going_on.add(kind_of(key_of(host, role, args, kwargs)))
        return interposed(host, self.path, unbound_forward(host), self._sites(role), args, kwargs)

    def _sites(self, role: int) -> tuple[LocalSite, ...]:
        return tuple(site for site in self.sites if site.role == role)

    def _variant(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant | None:
        key = key_of(host, role, args, kwargs)
        sizes = sizes_of(args, kwargs)
        for known in self.variants.get(key, ()):
            if known.fits(host, sizes):
                return known.variant
        if torch.compiler.is_compiling():
            raise UnseenCallError(
                type(host).__name__ + " at `" + self.path + "` is called in a way in which it has not been called "
                "before ("
                + spelled(args, kwargs)
                + "; in this mode, the last one known is "
                + self.last.get(host.training, "none")
                + "), and nothing can be captured while compiling. Call the "
                "model once like this (the same kinds of arguments, mode and autocast, gradients on or off) before "
                "compiling or exporting it. Where the model itself makes an argument only while it is compiled, as "
                "transformers does with the mask of a batch without padding, call it with one that does need it."
            )
        learned: Variant | None = self.learn(host, role, args, kwargs)
        return learned

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def learn(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant | None:
        """Capture this kind of call, put RegBN in, and hold the result to the original's.

        Where a graph could not do what the forward does, the host is interposed from now on (tier 3), and the result
        is None. The host's state is as before.

        Raises:
            UnseenCallError: where that does not do what the original does, either.
        """
        try:
            self._refuse_too_many(host, role, args, kwargs)
            variant = self._capture(host, role, args, kwargs)
            if not variant.leaks or self._captures(host, role, args, kwargs) <= _PATIENCE:
                return variant
            reason = f"{type(host).__name__}.forward goes by the sizes of its arguments, which keep changing"
        except RegBNBypassedError:
            raise
        except (CaptureError, RewriteError) as error:
            reason = str(error)
        if self.opened:
            both = " and ".join(next(site.words for site in self.sites if site.across is not None))
            raise RewriteError(f"RegBN cannot go in between {both}, which different modules call: {reason}")
        self._check_interposed(host, role, args, kwargs, reason)
        self.interposing = reason
        return None

    def _captures(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        return sum(len(known.exact) for known in self.variants.get(key_of(host, role, args, kwargs), ()))

    def _refuse_too_many(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises RewriteError where calls differ in a number, an object or an attribute every time."""
        kind = kind_of(key_of(host, role, args, kwargs))
        if sum(len(known) for key, known in self.variants.items() if kind_of(key) == kind) >= _MOST:
            raise RewriteError(
                f"{type(host).__name__}.forward goes by numbers, objects or attributes that keep changing from call to "
                f"call ({spelled(args, kwargs)})"
            )

    def _capture(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant:
        original = original_forward(host)
        with self._trial(host), identity(host):
            numbers = random_state()
            own_args, own_kwargs = own_arguments(args, kwargs)
            before = states(host, self.opened)
            leaf = leaf_rule(self.opened)
            trace, output = capture(host, own_args, own_kwargs, leaf=leaf, strict=True, forward=original)
            drawn = random_state() != numbers
            settings = settings_of(host, before, states(host, self.opened))
        self._refuse_baked(host, trace, drawn)
        sites = self._sites(role)
        self._refuse_checkpoints(host, trace, sites)
        variant = build_variant(host, trace, sites)
        variant = replace(variant, settings=(*variant.settings, *settings))
        if variant.sites:
            self._check(host, variant, args, kwargs, output)
        elif not remembered(host, sites, args, kwargs):
            tell_passed_by(host, self.path, sites, args, kwargs)
        self.last[host.training] = f"({spelled(args, kwargs)})"
        functions = (leaf for _, leaf in _tree.leaves((args, kwargs)) if callable(leaf))
        kept = (*trace.kept, *functions)
        return self._remember(key_of(host, role, args, kwargs), variant, sizes_of(args, kwargs), kept)

    @contextmanager
    def _trial(self, host: nn.Module) -> Iterator[None]:
        """A run that nobody asked for: it draws from a fixed seed and leaves nothing behind."""
        # A checkpoint around us counts what is saved for the backward pass; what a trial saves is none of its business.
        untouched = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
        with preserved(host, parameters=self.writes_parameters), seeded(), untouched, called_with((), {}):
            yield

    def _refuse_baked(self, host: nn.Module, trace: Trace, drawn: bool) -> None:
        """Raises RewriteError where the run depended on something that a graph would repeat for ever."""
        name = f"{type(host).__name__}.forward"
        if trace.reads:
            read = trace.reads[0]
            raise RewriteError(f"{name} reads a tensor's value into Python ({read.what}) at {read.source}")
        if trace.effects:
            raise RewriteError(f"{name} does what a graph cannot repeat: {trace.effects[0]}")
        if drawn:
            raise RewriteError(f"{name} draws random numbers from Python or NumPy")

    def _refuse_checkpoints(self, host: nn.Module, trace: Trace, sites: tuple[LocalSite, ...]) -> None:
        """Raises RewriteError where a graph would drop a checkpoint of the forward's own. Where RegBN itself lies in
        the part, it does: computed again by torch, that part would be without RegBN."""
        keys = [op.key for op in trace.ops if op.index in trace.checkpointed]
        if not keys or self.opened:
            return
        if not any(site.matches(take.at[0], key) for site in sites for take in (site.f, site.g) for key in keys):
            raise RewriteError(
                f"{type(host).__name__}.forward checkpoints a part of itself, or has its saved tensors kept elsewhere"
            )

    def _check_interposed(
        self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str
    ) -> None:
        original = original_forward(host)
        with self._trial(host):
            own_args, own_kwargs = own_arguments(args, kwargs)
            expected = original(*own_args, **own_kwargs)
        try:
            with self._trial(host), identity(host):
                own_args, own_kwargs = own_arguments(args, kwargs)
                found = interposed(host, self.path, unbound_forward(host), self._sites(role), own_args, own_kwargs)
        except RegBNBypassedError:
            raise
        except RewriteError as error:
            raise UnseenCallError(f"{error} (It cannot be generated because: {reason})") from error
        wrong = difference(expected, found)
        if wrong is not None:
            raise UnseenCallError(
                f"{type(host).__name__} at `{self.path}` is not repeated faithfully for a call with "
                f"{spelled(args, kwargs)}: {wrong}. (It cannot be generated because: {reason})"
            )

    def _check(
        self, host: nn.Module, variant: Variant, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any
    ) -> None:
        with self._trial(host), identity(host):
            own_args, own_kwargs = own_arguments(args, kwargs)
            try:
                found = variant.function(host, *own_args, **own_kwargs)
            except MODEL_ERRORS as error:
                raise RewriteError(
                    f"the captured forward of {type(host).__name__} fails where the original does not: "
                    f"{type(error).__name__}: {error}"
                ) from error
        wrong = difference(expected, found[0] if variant.stores else found)
        if wrong is not None and variant.reordered:
            wrong = self._difference_without_dropout(host, variant, args, kwargs)
        if wrong is not None:
            raise UnseenCallError(
                f"The captured forward of {type(host).__name__} at `{self.path}` does not repeat the original for a "
                f"call with {spelled(args, kwargs)}: {wrong}. RegBN is not put in where it would change the model."
            )

    def _difference_without_dropout(
        self, host: nn.Module, variant: Variant, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str | None:
        """What differs beside the order in which dropout draws its numbers."""
        outputs = []
        for forward in (original_forward(host), functools.partial(variant.function, host)):
            with self._trial(host), identity(host), without_dropout(host):
                own_args, own_kwargs = own_arguments(args, kwargs)
                outputs.append(forward(*own_args, **own_kwargs))
        return difference(outputs[0], outputs[1][0] if variant.stores else outputs[1])

    def _remember(self, key: Key, variant: Variant, sizes: tuple[int, ...], kept: tuple[Any, ...]) -> Variant:
        """A second capture at other sizes that gives the same code shows that these sizes do not matter to it."""
        known = self.variants.setdefault(key, [])
        for other in known:
            if other.variant.same_as(variant):
                other.see(sizes)
                return other.variant
        known.append(Known(variant, sizes, kept))
        return variant


#: More captures than this of one kind of call, for sizes that Python looked at, and the forward runs as it is instead.
_PATIENCE = 6
#: And more variants than this of calls that differ in numbers, objects or attributes alone.
_MOST = 8


def _stored(host: nn.Module, variant: Variant, result: Any) -> Any:
    """The output of a variant, once what its forward keeps on the host is there."""
    if not variant.stores:
        return result
    output, stores = result
    for name, value in stores.items():
        setattr(host, name, value)
    return output


@contextmanager
def _modes_restored() -> Iterator[None]:
    """A `with torch.no_grad():` is two calls in generated code: put the modes back if a call between them fails."""
    grad = torch.is_grad_enabled()
    autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    try:
        yield
    except BaseException:
        torch._C._set_grad_enabled(grad)
        for kind, enabled, dtype in autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        raise
