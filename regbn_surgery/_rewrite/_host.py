"""A host whose forward is generated: the same class by name, keys and behaviour, with variants behind `forward`.

As `torch.nn.utils.parametrize` does, the instance gets a class of its own that derives from its old one. Everything
particular to the instance sits in its `HostSurgery`, so that copies and pickles are easy: compiled functions are not
pickled but made anew from the sites at the first call.
"""

from __future__ import annotations

import copyreg
import functools
import warnings
from typing import Any

import torch
from torch import nn

from .. import _tree
from .._capture import capture
from .._capture._recorder import UnrecordableError, is_child
from .._errors import RegBNWarning, RewriteError, UnseenCallError
from .._state import preserved, seeded
from ._compare import difference
from ._local import LocalSite, Variant, build_variant
from ._roles import NO_ROLE, Roles
from ._site import identity

ATTRIBUTE = "_regbn_host"
Key = tuple[Any, ...]


class HostSurgery:
    """What a rewritten host knows: its sites, and its forward in as many variants as it has been called in ways."""

    def __init__(self, path: str, sites: tuple[LocalSite, ...], roles: Roles | None) -> None:
        self.path = path
        self.sites = sites
        self.roles = roles
        self.variants: dict[Key, list[_Known]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "variants": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> HostSurgery:
        import copy

        clone = HostSurgery(self.path, self.sites, copy.deepcopy(self.roles, memo))
        clone.variants = {key: list(known) for key, known in self.variants.items()}
        return clone

    def run(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        original = original_forward(host)
        role = self.roles.next() if self.roles is not None else 0
        if role == NO_ROLE:
            return original(*args, **kwargs)
        variant = self._variant(host, role, args, kwargs)
        if not variant.sites:
            return original(*args, **kwargs)
        result = variant.function(host, *args, **kwargs)
        if not variant.stores:
            return result
        output, stores = result
        for name, value in stores.items():
            setattr(host, name, value)
        return output

    def _variant(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant:
        key = _key(host, role, args, kwargs)
        sizes = _sizes(args, kwargs)
        for known in self.variants.get(key, ()):
            if known.fits(host, sizes):
                return known.variant
        if torch.compiler.is_compiling():
            raise UnseenCallError(
                f"{type(host).__name__} at `{self.path}` is called in a way it has not been called before "
                f"({_spelled(args, kwargs)}, training={host.training}), and nothing can be captured while compiling. "
                "Call the model once like this before compiling or exporting it."
            )
        return self.learn(host, role, args, kwargs)[0]

    def learn(self, host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Variant, Any]:
        """Capture this kind of call, put RegBN in, and hold the result to the original's.

        Returns the variant and the original's own output. The host's state is as before.

        Raises:
            UnseenCallError: where the graph does not do what the original does.
        """
        original = original_forward(host)
        with preserved(host), seeded(), torch.no_grad(), identity(host):
            trace, output = capture(host, args, kwargs, leaf=is_child, strict=True, forward=original)
        sites = tuple(site for site in self.sites if site.role == role)
        variant = build_variant(host, trace, sites)
        if not variant.sites:
            warnings.warn(
                f"{type(host).__name__} at `{self.path}` was called ({_spelled(args, kwargs)}) without coming by "
                f"any of its RegBN sites ({', '.join(site.name for site in sites)}); this call runs as it always did",
                RegBNWarning,
                stacklevel=2,
            )
        else:
            self._check(host, variant, args, kwargs, output)
        return self._remember(_key(host, role, args, kwargs), variant, _sizes(args, kwargs)), output

    def _check(
        self, host: nn.Module, variant: Variant, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any
    ) -> None:
        with preserved(host), seeded(), torch.no_grad(), identity(host):
            found = variant.function(host, *args, **kwargs)
        wrong = difference(expected, found[0] if variant.stores else found)
        if wrong is not None:
            raise UnseenCallError(
                f"The captured forward of {type(host).__name__} at `{self.path}` does not repeat the original for a "
                f"call with {_spelled(args, kwargs)}: {wrong}. RegBN is not put in where it would change the model."
            )

    def _remember(self, key: Key, variant: Variant, sizes: tuple[int, ...]) -> Variant:
        """A second capture at other sizes that gives the same code shows that these sizes do not matter to it."""
        known = self.variants.setdefault(key, [])
        for other in known:
            if (other.variant.after, other.variant.settings) == (variant.after, variant.settings):
                other.free |= {i for i, (a, b) in enumerate(zip(other.sizes, sizes, strict=True)) if a != b}
                return other.variant
        known.append(_Known(variant, sizes))
        return variant


class _Known:
    """A variant, the sizes of the arguments it was captured at, and those found not to matter."""

    def __init__(self, variant: Variant, sizes: tuple[int, ...]) -> None:
        self.variant = variant
        self.sizes = sizes
        self.free: set[int] = set()

    def fits(self, host: nn.Module, sizes: tuple[int, ...]) -> bool:
        if any(getattr(host, name, None) != value for name, value in self.variant.settings):
            return False
        return all(a == b or i in self.free for i, (a, b) in enumerate(zip(self.sizes, sizes, strict=True)))


def _key(host: nn.Module, role: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
    """What kind of call this is; `host(x, x)` is another kind than `host(x, y)`."""
    tensors = [id(tensor) for tensor in _tree.tensors((args, kwargs))]
    same = tuple(tensors.index(tensor) for tensor in tensors)
    return (role, host.training, _signature(args), _signature(kwargs), same)


def _signature(value: Any, depth: int = 0) -> Any:
    """What decides which way a forward goes: structure, `None`s, flags and numbers; of tensors the rank and kind."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dim(), value.dtype)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    children = _tree.items(value) if depth < _tree.MAX_DEPTH else None
    if children is None:
        return type(value)
    return (type(value), tuple((key, _signature(child, depth + 1)) for key, child in children))


def _sizes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    return tuple(size for tensor in _tree.tensors((args, kwargs)) for size in tensor.shape)


def _spelled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    def one(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        return repr(value) if value is None or isinstance(value, bool | int | float | str) else type(value).__name__

    return ", ".join([*map(one, args), *(f"{key}={one(value)}" for key, value in kwargs.items())]) or "no arguments"


def original_class(module: nn.Module) -> type[nn.Module]:
    found: type[nn.Module] = getattr(type(module), "_regbn_original_class", type(module))
    return found


def original_forward(host: nn.Module) -> Any:
    return original_class(host).forward.__get__(host)


_classes: dict[Any, type[nn.Module]] = {}


def rewritten_class(cls: Any) -> type[nn.Module]:
    """The class of rewritten instances of `cls`: the same name and signature, `forward` through its HostSurgery."""
    if cls in _classes:
        return _classes[cls]

    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        surgery: HostSurgery = self.__dict__[ATTRIBUTE]
        return surgery.run(self, args, kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        made = cls.__reduce_ex__(self, protocol)
        if made[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_rebuild, (cls, *made[1][1:]), *made[2:])
        return made

    body = {
        "forward": forward,
        "__reduce_ex__": reduce,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_regbn_original_class": cls,
    }
    derived: type[nn.Module] = type(cls)(cls.__name__, (cls,), body)
    return _classes.setdefault(cls, derived)


def _rebuild(cls: type[nn.Module], *args: Any) -> nn.Module:
    derived: Any = rewritten_class(cls)
    made: nn.Module = derived.__new__(derived, *args)
    return made


def install(host: nn.Module, surgery: HostSurgery) -> None:
    """Make the module a rewritten host.

    Raises:
        RewriteError: where its forward is not its class' (something has wrapped the instance already).
    """
    if "forward" in host.__dict__:
        raise RewriteError(
            f"The forward of {type(host).__name__} at `{surgery.path}` has been replaced on the instance (a hook of "
            "another library?). Put RegBN in first, and wrap the model afterwards."
        )
    host.__dict__[ATTRIBUTE] = surgery
    object.__setattr__(host, "__class__", rewritten_class(type(host)))


def uninstall(host: nn.Module) -> None:
    """Take everything away that `install` and the variants put on the host."""
    if ATTRIBUTE not in host.__dict__:
        return
    object.__setattr__(host, "__class__", original_class(host))
    del host.__dict__[ATTRIBUTE]
    for name in [name for name in host.__dict__ if name.startswith("regbn_const_")]:
        del host.__dict__[name]
    for name in [name for name in host._buffers if name.startswith("regbn_const_")]:
        del host._buffers[name]
        host._non_persistent_buffers_set.discard(name)


__all__ = ["ATTRIBUTE", "HostSurgery", "UnrecordableError", "install", "original_class", "uninstall"]
