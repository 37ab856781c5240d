"""The class of a rewritten host: derived from its own, as `torch.nn.utils.parametrize` does, and taken off again.

Where the class asks which class it is, or the instance has a forward of its own, `forward` on the instance is exchanged
instead.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._codes import coded
from .._errors import RewriteError
from .._trace._subclass import quiet_subclass
from .._user_code import warn_at_call
from ._changed import named_at
from ._guard import ATTRIBUTE
from ._methods import refuse_methods
from ._record import CodeSite
from ._site import RegBNSite
from ._symbolic import ASKED_BY_TRACERS, NameForTracers, are_symbols, follow, follow_original, not_followed

if TYPE_CHECKING:
    from ._graph_host import GraphHost
    from ._hoist import HookedRoot
    from ._host import HostSurgery


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


def unbound_function(host: nn.Module) -> Any:
    """The forward as its class has it, or what the instance had in its place, with decorators."""
    own = host.__dict__.get("forward")
    before = own.before if isinstance(own, InstanceForward) else None
    if ATTRIBUTE not in host.__dict__ and _is_its_own(own, host):  # surgery has not been here yet
        before = own
    while isinstance(before, functools.partial):
        before = before.func
    return original_class(host).forward if before is None else getattr(before, "__func__", before)


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
        if are_symbols(args, kwargs):
            return follow(self.host, surgery, args, kwargs)
        return surgery.run(self.host, args, kwargs)


_classes: dict[Any, type[nn.Module]] = {}


def rewritten_class(cls: Any, methods: tuple[str, ...] = ()) -> type[nn.Module]:
    """The class of rewritten instances of `cls`: the same name and signature, `forward`, and the named methods, through
    its HostSurgery."""
    if (cls, methods) in _classes:
        return _classes[cls, methods]

    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        surgery: Any = self.__dict__.get(ATTRIBUTE)  # a HostSurgery, GraphHost or HookedRoot
        if surgery is None:
            _tell_another(self)
            if are_symbols(args, kwargs):
                return follow_original(self, cls.forward, args, kwargs)
            return cls.forward(self, *args, **kwargs)
        if surgery.passes_on and not are_symbols(args, kwargs):
            return cls.forward(self, *args, **kwargs)
        if torch.compiler.is_compiling() and surgery.direct is not None:
            # Where the graph breaks in the forward, it breaks in every function around it: no more than this one.
            output = surgery.direct(self, *args, **kwargs)
            surgery.after_compiled(self, 0, args, kwargs, output)
            return output
        if are_symbols(args, kwargs):
            return follow(self, surgery, args, kwargs)
        return surgery.run(self, args, kwargs)

    # Who unwraps functions (accelerate, taking its own wrapper off) must not unwrap this one: RegBN would be gone.
    forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
    del forward.__wrapped__

    def reduce(self: nn.Module, protocol: Any) -> Any:
        made = cls.__reduce_ex__(self, protocol)
        if made[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_rebuild, (cls, methods, *made[1][1:]), *made[2:])
        return (_make_again, (methods, made[0], made[1]), *made[2:])  # the class says itself how it is made

    def restore(self: nn.Module, state: Any) -> None:
        cls.__setstate__(self, state)
        surgery = self.__dict__.get(ATTRIBUTE)
        if surgery is not None:
            surgery.prepare(self)

    body = {
        "forward": forward,
        "__setstate__": restore,
        "__reduce_ex__": reduce,
        "_regbn_original_class": cls,
        **{name: _rewritten_method(cls, name) for name in methods},
    }
    if hasattr(cls, "__deepcopy__"):
        body["__deepcopy__"] = _copying(cls)
    derived: type[nn.Module] = quiet_subclass(cls, body)
    return _classes.setdefault((cls, methods), derived)


def _copying(cls: Any) -> Any:
    """For a class that copies itself in a way of its own, as graph modules do, and leaves out what it does not know."""

    def __deepcopy__(self: nn.Module, memo: dict[int, Any]) -> nn.Module:  # noqa: N807
        made: nn.Module = cls.__deepcopy__(self, memo)
        if ATTRIBUTE in made.__dict__:
            return made
        surgery = copy.deepcopy(self.__dict__[ATTRIBUTE], memo)
        for name, child in self._modules.items():
            if name not in made._modules:
                made.add_module(name, copy.deepcopy(child, memo))
        for name, value in self.__dict__.items():
            if name.startswith("_regbn") or isinstance(value, RegBNSite):
                made.__dict__[name] = copy.deepcopy(value, memo)
        made.__dict__[ATTRIBUTE] = surgery
        methods = tuple(dict.fromkeys(name for site in surgery.sites for name in site.methods))
        object.__setattr__(made, "__class__", rewritten_class(type(made), methods))
        return made

    return __deepcopy__


def _rewritten_method(cls: Any, name: str) -> Any:
    @functools.wraps(getattr(cls, name))
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        surgery: HostSurgery | None = self.__dict__.get(ATTRIBUTE)
        if surgery is None:
            _tell_another(self)
            return getattr(cls, name)(self, *args, **kwargs)
        if are_symbols(args, kwargs):
            raise not_followed(self, f"its method {name} is called, which RegBN is in as well")
        return surgery.run_method(self, name, args, kwargs)

    return method


_TOLD = "_regbn_told_another"


def _tell_another(module: nn.Module) -> None:
    """A module that was made from the class of a rewritten one (`type(model)(...)`, `from_pretrained`) has no RegBN."""
    if _TOLD in module.__dict__ or torch.compiler.is_compiling():
        return
    module.__dict__[_TOLD] = True
    text = (
        f"This {type(module).__name__} is a new instance of a rewritten model's class and contains no RegBN: it "
        "computes what the original does. To add RegBN, call load_regbn(model, folder) with a folder written by "
        "save_regbn, Recipe.apply(model), or regbnify."
    )
    warn_at_call(coded("RB408", text))


def _rebuild(cls: type[nn.Module], methods: tuple[str, ...], *args: Any) -> nn.Module:
    derived: Any = rewritten_class(cls, methods)
    made: nn.Module = derived.__new__(derived, *args)
    return made


def _make_again(methods: tuple[str, ...], make: Any, args: tuple[Any, ...]) -> nn.Module:
    made: nn.Module = make(*args)
    object.__setattr__(made, "__class__", rewritten_class(type(made), methods))
    return made


def install(host: nn.Module, surgery: HostSurgery | GraphHost | HookedRoot) -> None:
    """Make the module a rewritten host.

    Raises:
        RewriteError: where its forward is not its class' (something has wrapped the instance already).
    """
    own = host.__dict__.get("forward")
    if own is not None and not _is_its_own(own, host):
        raise RewriteError(
            f"The forward of {named_at(type(host), surgery.path)} has been replaced on the instance (a hook of "
            "another library?). Put RegBN in first, and wrap the model afterwards."
        )
    methods = tuple(dict.fromkeys(name for site in surgery.sites for name in site.methods))
    for site in surgery.sites:
        if isinstance(site, CodeSite):
            refuse_methods(site, site.methods, type(host))
        elif methods:
            raise RewriteError(
                f"`methods:` of {site.name}: its RegBN reorders the calls of forward, so it can run in no other "
                "method. Remove `methods:` from the rule"
            )
    host.__dict__[ATTRIBUTE] = surgery
    if own is not None or asks_its_class(type(host)):
        host.__dict__["forward"] = InstanceForward(host, own)
        host.__dict__[ASKED_BY_TRACERS] = NameForTracers(host)
        if not methods:
            return
        del host.__dict__[ATTRIBUTE], host.__dict__["forward"], host.__dict__[ASKED_BY_TRACERS]
        if own is not None:
            host.__dict__["forward"] = own
        raise RewriteError(
            f"`methods: [{', '.join(methods)}]`: {named_at(type(host), surgery.path)} has to keep its exact "
            "class, so only its forward can be replaced. Remove `methods:` from the rule"
        )
    object.__setattr__(host, "__class__", rewritten_class(original_class(host), methods))
    host.__dict__.pop(_TOLD, None)


def _is_its_own(forward: Any, host: nn.Module) -> bool:
    """Whether a forward on the instance is a method of the instance, perhaps with arguments filled in: then its class
    put it there, and no other library that will want to take it away again."""
    if "_original_forward" in host.__dict__:  # where accelerate keeps the forward that it will put back
        return False
    while isinstance(forward, functools.partial):
        forward = forward.func
    return inspect.ismethod(forward) and forward.__self__ is host


def install_for_symbols(root: nn.Module, surgery: HookedRoot) -> None:
    """Give a root whose RegBN is in hooks a class of which tracers ask the forward, where it may have one."""
    if ATTRIBUTE in root.__dict__:
        return
    if "forward" not in root.__dict__ and not asks_its_class(type(root)):
        install(root, surgery)
    else:
        root.__dict__[ASKED_BY_TRACERS] = NameForTracers(root)


def asks_its_class(cls: type[nn.Module]) -> bool:
    """Whether the forward asks for the class by identity, to which a class of the instance's own is another answer."""
    try:
        source = inspect.getsource(inspect.unwrap(cls.forward))
    except (OSError, TypeError):
        return False
    return re.search(r"\btype\(self\)\s*(is|==|!=|in|not)\b|self\.__class__\s*(is|==|!=|in|not)\b", source) is not None


def uninstall(host: nn.Module) -> None:
    """Take everything away that `install` and the variants put on the host."""
    host.__dict__.pop(ASKED_BY_TRACERS, None)
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
