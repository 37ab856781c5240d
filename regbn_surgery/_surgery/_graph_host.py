"""A host whose calls have to run in another order: its forward as a graph, with the modules that RegBN goes between.

Only for pairs between two towers of which one side is read before the other exists. There is one variant for each kind
of call, captured, checked and kept. Compiled functions are not pickled but made anew from the sites at the first call.
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
from .._analysis import MODEL_ERRORS
from .._codes import coded
from .._errors import CaptureError, RegBNBypassedError, RewriteError, UnseenCallError
from .._state import preserved, random_state, seeded
from .._trace import Trace, capture
from .._user_code import warn_at_call
from ..nn._compilers import exporting
from ._arguments import own_arguments, spelled
from ._bypass import refuse_going_on, refuse_unknown_caches, remember_caches, remembered
from ._calls import Key, Known, key_of, kind_of, sizes_of
from ._changed import named_at
from ._classes import original_class, original_forward
from ._compare import difference
from ._compiling import outside_graphs
from ._growing import called_with
from ._guard import on_the_stack
from ._local import LocalSite, Variant, build_variant
from ._memory import has_caches, mark_compiled
from ._opened import leaf_rule, refuse_hooks, settings_of, states
from ._reorder import without_dropout
from ._roles import NO_ROLE, Roles
from ._site import identity
from ._symbol_passage import NotFollowedError
from ._unfollowed import outside_transforms, saved_as_they_are, unseen_by_jit


class GraphHost:
    """What a rewritten host knows: its sites, and its forward in as many variants as it has been called in ways."""

    direct = None  # no forward of its stands for a whole call
    passes_on = False

    def __init__(self, path: str, sites: tuple[LocalSite, ...], roles: Roles | None, writes_parameters: bool) -> None:
        self.path = path
        self.writes_parameters = writes_parameters
        self.sites = sites
        self.roles = roles
        self.variants: dict[Key, list[Known]] = {}
        self.opened = frozenset(path for site in sites if site.across is not None for path in site.across.opened)
        self.token = uuid.uuid4().hex  # by which guards know it; a copy is guarded by copies that know the same
        self.last: dict[bool, str] = {}  # by training flag, the last kind of call that was captured, for people

    def prepare(self, host: nn.Module) -> None:
        """Nothing: calls are captured when they come."""

    def without(self, name: str) -> None:
        """Forget one site."""
        self.sites = tuple(site for site in self.sites if site.name != name)
        self.variants = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "variants": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphHost:
        import copy

        clone = GraphHost(self.path, self.sites, copy.deepcopy(self.roles, memo), self.writes_parameters)
        clone.variants = {key: list(known) for key, known in self.variants.items()}
        clone.token, clone.last = self.token, dict(self.last)
        return clone

    def run(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The host's forward, with RegBN in it."""
        if torch.compiler.is_compiling():
            return self._run(host, args, kwargs)
        with on_the_stack(self.token):
            return self._run(host, args, kwargs)

    def _run(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        original = original_forward(host)
        if self.opened:
            refuse_hooks(host, self.opened)
        role = self.roles.next() if self.roles is not None else 0
        if role == NO_ROLE:
            return original(*args, **kwargs)
        compiling = torch.compiler.is_compiling()
        met = {} if compiling else remembered(host, self._sites(role), args, kwargs)
        variant = self._variant(host, role, args, kwargs)
        if not met.keys() <= set(variant.sites):
            refuse_going_on(host, self.path, self._sites(role), args, kwargs)
        if not variant.sites:
            if not compiling:
                refuse_going_on(host, self.path, self._sites(role), args, kwargs)
            elif has_caches(args, kwargs):
                refuse_unknown_caches(host, self.path, self._sites(role), args, kwargs)
            return original(*args, **kwargs)
        if compiling:  # the fewer frames, the fewer that a break within splits once more
            output = _stored(host, variant, variant.function(host, *args, **kwargs))
            if not exporting():
                mark_compiled(variant.tokens, args, kwargs, output)
            return output
        with called_with(args, kwargs):
            with _modes_restored():
                output = _stored(host, variant, variant.function(host, *args, **kwargs))
            remember_caches(host, variant.sites, (), args, kwargs, output)
        return output

    def forward_for_symbols(self, host: nn.Module) -> Any:
        """See `HostSurgery`."""
        return original_class(host).forward

    def follow(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Raises NotFollowedError: the order of the calls is found in a run with tensors."""
        raise NotFollowedError("its calls run in another order, which is found in a run with tensors")

    def follow_root(self, host: nn.Module, run: Any, given: list[Any]) -> Any:
        """As `follow`."""
        return self.follow(host, (), {})

    def _sites(self, role: int) -> tuple[LocalSite, ...]:
        return tuple(site for site in self.sites if site.role == role)

    def _variant(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant:
        if not torch.compiler.is_compiling():
            with unseen_by_jit():
                found: Variant = self._known(host, role, args, kwargs) or self.learn(host, role, args, kwargs)
            return found
        known = self._known(host, role, args, kwargs)
        if known is None:
            raise UnseenCallError(
                type(host).__name__
                + " at `"
                + self.path
                + "` is called with a new call signature ("
                + spelled(args, kwargs)
                + "; the last one known in this mode is "
                + self.last.get(host.training, "none")
                + "), and a new kind of call cannot be captured while compiling. Call the model once in this way (the "
                "same kinds of arguments, mode and autocast, gradients on or off) before compiling or exporting it. If "
                "the model itself creates an argument only while it is compiled, as transformers does with the mask "
                "of a batch without padding, call it once with a batch that needs this argument."
            )
        return known

    def _known(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant | None:
        sizes = sizes_of(args, kwargs)
        for known in self.variants.get(key_of(host, role, args, kwargs), ()):
            if known.fits(host, sizes):
                return known.variant
        return None

    @outside_graphs
    def learn(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant:
        """Capture this kind of call, put RegBN in, and hold the result to the original's. The host stays as it was.

        Raises:
            RewriteError: where a graph could not do what the forward does.
        """
        if original_class(host).__module__.startswith("<torch_package"):
            raise RegBNBypassedError(
                f"{type(host).__name__} was loaded from a torch.package, which copies its code; the calls of that copy "
                "cannot be put into another order, which RegBN needs here. Use save_regbn and load_regbn"
            )
        try:
            self._refuse_too_many(host, role, args, kwargs)
            variant = self._capture(host, role, args, kwargs)
            if not variant.leaks or self._captures(host, role, args, kwargs) <= _PATIENCE:
                return variant
            reason = f"{type(host).__name__}.forward depends on the sizes of its arguments, which keep changing"
        except RegBNBypassedError:
            raise
        except (CaptureError, RewriteError) as error:
            reason = str(error)
        both = " and ".join(next((site.words for site in self.sites if site.across is not None), self.sites[0].words))
        raise RewriteError(
            f"RegBN cannot be inserted between {both}: one is read before the other is computed, so calls would have "
            f"to be reordered, but {reason}"
        )

    def _captures(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        return sum(len(known.exact) for known in self.variants.get(key_of(host, role, args, kwargs), ()))

    def _refuse_too_many(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises RewriteError where calls differ in a number, an object or an attribute every time."""
        kind = kind_of(key_of(host, role, args, kwargs))
        if sum(len(known) for key, known in self.variants.items() if kind_of(key) == kind) >= _MOST:
            raise RewriteError(
                f"{type(host).__name__}.forward depends on numbers, objects or attributes that differ in every call "
                f"({spelled(args, kwargs)})"
            )

    def _capture(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant:
        original = original_forward(host)
        with self._trial(host, args, kwargs) as (own_args, own_kwargs):
            numbers = random_state()
            before = states(host, self.opened)
            leaf = leaf_rule(self.opened)
            trace, output = capture(host, own_args, own_kwargs, leaf=leaf, strict=True, forward=original)
            drawn = random_state() != numbers
            settings = settings_of(host, before, states(host, self.opened))
        self._refuse_baked(host, trace, drawn)
        sites = self._sites(role)
        variant = build_variant(host, trace, sites)
        variant = replace(variant, settings=(*variant.settings, *settings))
        if variant.sites:
            self._check(host, variant, args, kwargs, output)
        elif not remembered(host, sites, args, kwargs):
            self._tell_passed_by(host, sites, args, kwargs)
        self.last[host.training] = f"({spelled(args, kwargs)})"
        functions = (leaf for _, leaf in _tree.leaves((args, kwargs)) if callable(leaf))
        kept = (*trace.kept, *functions)
        return self._remember(key_of(host, role, args, kwargs), variant, sizes_of(args, kwargs), kept)

    @contextmanager
    def _trial(
        self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """A run that nobody asked for, with arguments of its own: it draws from a fixed seed, computes without RegBN
        and leaves nothing behind."""
        keeping = preserved(host, parameters=self.writes_parameters)
        plain = outside_transforms(host, (args, kwargs))
        with keeping, seeded(), saved_as_they_are(), called_with((), {}), identity(host), plain as given:
            yield own_arguments(*given)

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

    def _tell_passed_by(
        self, host: nn.Module, sites: tuple[LocalSite, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        refuse_going_on(host, self.path, sites, args, kwargs)
        names = ", ".join(site.name for site in sites)
        text = (
            f"{named_at(type(host), self.path)} was called ({spelled(args, kwargs)}) without reaching any of its "
            f"RegBN sites ({names}); this call computes what the original does"
        )
        warn_at_call(coded("RB407", text))

    def _check(
        self, host: nn.Module, variant: Variant, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any
    ) -> None:
        with self._trial(host, args, kwargs) as (own_args, own_kwargs):
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
                f"The captured forward of {named_at(type(host), self.path)} does not repeat the original for a "
                f"call with {spelled(args, kwargs)}: {wrong}. RegBN is not inserted where that would change the "
                "model's own computation."
            )

    def _difference_without_dropout(
        self, host: nn.Module, variant: Variant, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str | None:
        """What differs beside the order in which dropout draws its numbers."""
        outputs = []
        for forward in (original_forward(host), functools.partial(variant.function, host)):
            with self._trial(host, args, kwargs) as (own_args, own_kwargs), without_dropout(host):
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
