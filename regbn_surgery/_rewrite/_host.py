"""A host whose forward is generated: the same class by name, keys and behaviour, with variants behind `forward`.

As `torch.nn.utils.parametrize` does, the instance gets a class of its own that derives from its old one. Everything
particular to the instance sits in its `HostSurgery`, so that copies and pickles are easy: compiled functions are not
pickled but made anew from the sites at the first call.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .._capture import Trace, capture
from .._capture._subclass import quiet_subclass
from .._errors import CaptureError, RegBNBypassedError, RewriteError, UnseenCallError
from .._state import preserved, random_state, seeded
from ._bypass import refuse_going_on, refuse_unknown_caches, remember_caches, remembered, tell_passed_by
from ._calls import Key, Known, key_of, kind_of, own_arguments, sizes_of, spelled
from ._compare import difference
from ._growing import called_with
from ._guard import ATTRIBUTE, on_the_stack
from ._interpose import interposed
from ._local import LocalSite, Variant, build_variant
from ._memory import has_caches, mark_compiled
from ._methods import interposed_method, refuse_methods
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
                "model once like this (the same kinds of arguments, the same mode, gradients on or off) before "
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
        variant = build_variant(host, trace, sites)
        variant = replace(variant, settings=(*variant.settings, *settings))
        if variant.sites:
            self._check(host, variant, args, kwargs, output)
        elif not remembered(host, sites, args, kwargs):
            tell_passed_by(host, self.path, sites, args, kwargs)
        self.last[host.training] = f"({spelled(args, kwargs)})"
        return self._remember(key_of(host, role, args, kwargs), variant, sizes_of(args, kwargs))

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
            found = variant.function(host, *own_args, **own_kwargs)
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

    def _remember(self, key: Key, variant: Variant, sizes: tuple[int, ...]) -> Variant:
        """A second capture at other sizes that gives the same code shows that these sizes do not matter to it."""
        known = self.variants.setdefault(key, [])
        for other in known:
            if other.variant.same_as(variant):
                other.see(sizes)
                return other.variant
        known.append(Known(variant, sizes))
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


def original_class(module: nn.Module) -> type[nn.Module]:
    found: type[nn.Module] = getattr(type(module), "_regbn_original_class", type(module))
    return found


def original_forward(host: nn.Module) -> Any:
    return unbound_forward(host).__get__(host)


def unbound_forward(host: nn.Module) -> Any:
    """The forward that the host had before the surgery, of its class or, where it had one, its own."""
    own = host.__dict__.get("forward")
    before = own.before if isinstance(own, InstanceForward) else None
    return original_class(host).forward if before is None else _Unbound(before)


class _Unbound:
    """A forward that is bound already, to be bound once more."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __get__(self, host: nn.Module, owner: Any = None) -> Any:
        return self.forward


class InstanceForward:
    """Stands as `forward` on an instance that keeps its very class: one that has a forward of its own, or a class that
    asks which class it is. `before` is the forward that stood there; None where the class' served."""

    def __init__(self, host: nn.Module, before: Any) -> None:
        self.host = host
        self.before = before
        self.__signature__ = inspect.signature(before or type(host).forward.__get__(host))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        surgery: HostSurgery = self.host.__dict__[ATTRIBUTE]
        return surgery.run(self.host, args, kwargs)


_classes: dict[Any, type[nn.Module]] = {}


def rewritten_class(cls: Any, methods: tuple[str, ...] = ()) -> type[nn.Module]:
    """The class of rewritten instances of `cls`: the same name and signature, `forward`, and the named methods, through
    its HostSurgery."""
    if (cls, methods) in _classes:
        return _classes[cls, methods]

    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        surgery: HostSurgery = self.__dict__[ATTRIBUTE]
        return surgery.run(self, args, kwargs)

    # Who unwraps functions (accelerate, taking its own wrapper off) must not unwrap this one: RegBN would be gone.
    forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
    del forward.__wrapped__

    def reduce(self: nn.Module, protocol: Any) -> Any:
        made = cls.__reduce_ex__(self, protocol)
        if made[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_rebuild, (cls, methods, *made[1][1:]), *made[2:])
        return (_make_again, (methods, made[0], made[1]), *made[2:])  # the class says itself how it is made

    body = {
        "forward": forward,
        "__reduce_ex__": reduce,
        "_regbn_original_class": cls,
        **{name: _rewritten_method(cls, name) for name in methods},
    }
    derived: type[nn.Module] = quiet_subclass(cls, body)
    return _classes.setdefault((cls, methods), derived)


def _rewritten_method(cls: Any, name: str) -> Any:
    @functools.wraps(getattr(cls, name))
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        surgery: HostSurgery = self.__dict__[ATTRIBUTE]
        return surgery.run_method(self, name, args, kwargs)

    return method


def _rebuild(cls: type[nn.Module], methods: tuple[str, ...], *args: Any) -> nn.Module:
    derived: Any = rewritten_class(cls, methods)
    made: nn.Module = derived.__new__(derived, *args)
    return made


def _make_again(methods: tuple[str, ...], make: Any, args: tuple[Any, ...]) -> nn.Module:
    made: nn.Module = make(*args)
    object.__setattr__(made, "__class__", rewritten_class(type(made), methods))
    return made


def install(host: nn.Module, surgery: HostSurgery) -> None:
    """Make the module a rewritten host.

    Raises:
        RewriteError: where its forward is not its class' (something has wrapped the instance already).
    """
    own = host.__dict__.get("forward")
    if own is not None and not _is_its_own(own, host):
        raise RewriteError(
            f"The forward of {type(host).__name__} at `{surgery.path}` has been replaced on the instance (a hook of "
            "another library?). Put RegBN in first, and wrap the model afterwards."
        )
    methods = tuple(dict.fromkeys(name for site in surgery.sites for name in site.methods))
    for site in surgery.sites:
        refuse_methods(site, site.methods, type(host))
    host.__dict__[ATTRIBUTE] = surgery
    if _asks_its_class(type(host)):  # while it is captured it has another class, too
        surgery.interposing = f"{type(host).__name__}.forward asks which class it is, by identity"
    if own is not None or surgery.interposing:
        host.__dict__["forward"] = InstanceForward(host, own)
        if not methods:
            return
        del host.__dict__[ATTRIBUTE], host.__dict__["forward"]
        if own is not None:
            host.__dict__["forward"] = own
        raise RewriteError(
            f"`methods: [{', '.join(methods)}]`: {type(host).__name__} at `{surgery.path}` has to keep its very class, "
            "so that only its forward can be exchanged"
        )
    object.__setattr__(host, "__class__", rewritten_class(type(host), methods))


def _is_its_own(forward: Any, host: nn.Module) -> bool:
    """Whether a forward on the instance is a method of the instance, perhaps with arguments filled in: then its class
    put it there, and no other library that will want to take it away again."""
    if "_original_forward" in host.__dict__:  # where accelerate keeps the forward that it will put back
        return False
    while isinstance(forward, functools.partial):
        forward = forward.func
    return inspect.ismethod(forward) and forward.__self__ is host


def _asks_its_class(cls: type[nn.Module]) -> bool:
    """Whether the forward asks for the class by identity, to which a class of the instance's own is another answer."""
    try:
        source = inspect.getsource(inspect.unwrap(cls.forward))
    except (OSError, TypeError):
        return False
    return re.search(r"\btype\(self\)\s*(is|==|!=|in|not)\b|self\.__class__\s*(is|==|!=|in|not)\b", source) is not None


def uninstall(host: nn.Module) -> None:
    """Take everything away that `install` and the variants put on the host."""
    if ATTRIBUTE not in host.__dict__:
        return
    # Wrappers such as accelerate's leave a bound method on the instance when they are taken off again.
    left = getattr(host.__dict__.get("forward"), "__func__", None)
    if left is not None and left is vars(type(host)).get("forward"):
        del host.__dict__["forward"]
    object.__setattr__(host, "__class__", original_class(host))
    del host.__dict__[ATTRIBUTE]
    own = host.__dict__.get("forward")
    if isinstance(own, InstanceForward):
        del host.__dict__["forward"]
        if own.before is not None:
            host.__dict__["forward"] = own.before


__all__ = ["ATTRIBUTE", "HostSurgery", "install", "original_class", "uninstall"]
