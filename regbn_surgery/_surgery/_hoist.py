"""Tier 1: the owner receives the two branches as arguments, so a forward pre-hook normalises them on the way in.

Nothing of the owner's code is touched: it goes on branching, caching and compiling as before.
"""

from __future__ import annotations

import inspect
import uuid
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from .. import _tree
from .._errors import RegBNBypassedError, RewriteError
from ..nn._compilers import exporting
from ._bypass import refuse_going_on, refuse_unknown_caches, remember_caches, remembered
from ._changed import named_at, refuse_another
from ._classes import original_class, unbound_function
from ._growing import Frame
from ._locate import Locator
from ._memory import forget_if_empty, has_caches, mark_compiled
from ._record import FunctionText, MaskArgument, with_masks
from ._roles import Roles
from ._site import RegBNSite, site_at
from ._symbol_passage import NotFollowedError, first_tracer
from ._symbolic import are_symbols, not_followed


@dataclass(frozen=True)
class HoistSpec:
    """Arguments (dotted names) that are f and g; all arguments that are the same tensor are replaced together."""

    site: str  # name of the RegBNSite in the host
    f: tuple[str, ...]
    g: tuple[str, ...]
    replace_g: bool
    role: int = 0
    masks: tuple[MaskArgument, ...] = ()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(with_masks(state))

    @property
    def name(self) -> str:
        return self.site

    @property
    def methods(self) -> tuple[str, ...]:
        """Of the host, beside `forward`: a hook is called for none."""
        return ()


class HoistHook:
    """The pre-hook: several specs where a shared owner has several roles."""

    def __init__(
        self,
        specs: tuple[HoistSpec, ...],
        positions: dict[str, int],
        roles: Roles | None,
        path: str = "",
        texts: tuple[FunctionText, ...] = (),
    ) -> None:
        self.texts = texts  # of the forward
        self.compared = True  # with the forward that is there
        self.path = path
        self.specs = specs
        self.positions = positions  # argument name -> index among the positional arguments
        self.roles = roles

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "compared": False}  # where it is loaded, the code may be another

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.compared and not torch.compiler.is_compiling():
            refuse_changed_forward(module, self.texts, self.path)
            self.compared = True
        if self.roles is not None and are_symbols(args, kwargs):
            self.roles.reset_for(first_tracer((args, kwargs)))
        role = self.roles.next() if self.roles is not None else None
        changed = False
        for spec in self.specs:
            if role is not None and spec.role != role:
                continue
            f = self._find(spec.f[0], args, kwargs)
            g = self._find(spec.g[0], args, kwargs)
            if not isinstance(f, Tensor) or not isinstance(g, Tensor):
                if are_symbols((args,), kwargs):
                    args, kwargs = self._on_symbols(module, spec, f, g, args, kwargs)
                    changed = True
                    continue
                if isinstance(f, Tensor) or isinstance(g, Tensor):
                    args, kwargs, went_on = self._alone(module, spec, f, args, kwargs)
                    changed = changed or went_on
                continue
            site = site_at(module, spec.site)
            mask = self._masks(spec, args, kwargs)
            if torch.compiler.is_compiling():
                f_new, g_new = site(f, g, mask=mask)
                if not exporting():
                    mark_compiled((site.token,), args, kwargs)
            else:
                f_new, g_new = _normalised(module, site, spec, (f, g), mask, args, kwargs)
            args, kwargs = self._replace(spec.f, f, f_new, args, kwargs)
            if spec.replace_g:
                args, kwargs = self._replace(spec.g, g, g_new, args, kwargs)
            changed = True
        return (args, kwargs) if changed else None

    def _on_symbols(
        self, module: nn.Module, spec: HoistSpec, f: Any, g: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with RegBN's results, in a graph that `torch.fx.symbolic_trace` makes.

        Raises:
            RegBNBypassedError: where what is f, g or the mask does not show in symbols.
        """
        for name in (spec.f[0], spec.g[0], *(mask.argument for mask in spec.masks)):
            root, dotted, _ = name.partition(".")
            if dotted and isinstance(self._find(root, args, kwargs), Proxy):
                raise not_followed(module, f"`{name}` is a part of an argument whose structure symbols do not show")
        if not isinstance(f, Tensor | Proxy) or not isinstance(g, Tensor | Proxy):
            return args, kwargs
        f_new, g_new = site_at(module, spec.site)(f, g, mask=self._masks(spec, args, kwargs))
        args, kwargs = self._replace(spec.f, f, f_new, args, kwargs)
        return self._replace(spec.g, g, g_new, args, kwargs) if spec.replace_g else (args, kwargs)

    def _alone(
        self, module: nn.Module, spec: HoistSpec, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
        """A call with one side, such as self-attention: nothing meets. Where f goes on from where the two met before,
        it goes through RegBN with the g of then."""
        if torch.compiler.is_compiling():
            if has_caches(args, kwargs):
                refuse_unknown_caches(module, self.path, (spec,), args, kwargs)
            return args, kwargs, False
        met = remembered(module, (spec,), args, kwargs).get(spec.name)
        if met is None or not isinstance(f, Tensor):
            refuse_going_on(module, self.path, (spec,), args, kwargs)
            return args, kwargs, False
        site = site_at(module, spec.site)
        try:
            new = site.go_on(f, met)
        except RegBNBypassedError as error:
            refuse_going_on(module, self.path, (spec,), args, kwargs, str(error))
            raise
        return (*self._replace(spec.f, f, new, args, kwargs), True)

    def _masks(self, spec: HoistSpec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        if not spec.masks:
            return None
        return tuple([self._find(mask.argument, args, kwargs) for mask in spec.masks])

    def _find(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        root, *rest = name.split(".")
        if root in kwargs:
            value = kwargs[root]
        elif root in self.positions and self.positions[root] < len(args):
            value = args[self.positions[root]]
        elif f"*{root}" in self.positions and rest:
            value = args[self.positions[f"*{root}"] :]
        else:
            return None
        for key in rest:
            children = {str(k): v for k, v in _tree.items(value) or ()}
            value = children.get(key)
        return value

    def _replace(
        self, names: tuple[str, ...], old: Tensor | Proxy, new: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with `old` exchanged for `new` in the named ones."""
        roots = {name.split(".")[0] for name in names}

        def change(_: str, leaf: Any) -> Any:
            return new if leaf is old else leaf

        for root in roots:
            if root in kwargs:
                kwargs = {**kwargs, root: _tree.rebuild(kwargs[root], change)}
                continue
            start = self.positions.get(root, self.positions.get(f"*{root}", len(args)))
            stop = start + 1 if root in self.positions else len(args)
            changed = [_tree.rebuild(value, change) for value in args[start:stop]]
            args = (*args[:start], *changed, *args[stop:])
        return args, kwargs


def _normalised(
    module: nn.Module,
    site: RegBNSite,
    spec: HoistSpec,
    sides: tuple[Tensor, Tensor],
    mask: tuple[Any, ...] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """f' and g', and what caches among the arguments are to know of it."""
    cached = has_caches(args, kwargs)
    if cached:
        forget_if_empty(args, kwargs)
    with Frame(args, kwargs):
        f_new, g_new = site(*sides, mask=mask)
        if cached:
            remember_caches(module, (spec.site,), (), args, kwargs)
    return f_new, g_new


def hooked(host: nn.Module, forward: Any, run: Any, given: list[Any]) -> list[Any]:
    """The arguments of a root, itself first, as its RegBN hooks leave them: `symbolic_trace` calls no hook of a root.

    `run` is `forward` as the tracer is going to call it, with `given`.

    Raises:
        NotFollowedError: where the tracer has taken the arguments apart.
    """
    hooks = [hook for hook in host._forward_pre_hooks.values() if isinstance(hook, HoistHook)]
    if not hooks:
        return given
    if getattr(run, "__name__", "") != forward.__name__:
        raise NotFollowedError("the structured `concrete_args` are taken apart before its hook gets them")
    code = inspect.unwrap(forward).__code__
    names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    named = dict(zip(names, given[1:], strict=False))
    specs = [spec for hook in hooks for spec in hook.specs]
    masks = [mask.argument for spec in specs for mask in spec.masks]
    for name in [*masks, *(name for spec in specs for name in (*spec.f, *spec.g))]:
        if name.split(".")[0] not in named:
            raise NotFollowedError(f"`{name}` is among arguments that symbols show as one")
    for hook in hooks:
        changed = hook(host, (), named)
        named = named if changed is None else changed[1]
    return [given[0], *named.values(), *given[1 + len(names) :]]


class HookedRoot:
    """Stands for the surgery of a root of which hooks are all: its forward is its class' own.

    A root's hooks are not called by `torch.fx.symbolic_trace`, which asks its class for the forward.
    """

    direct = None
    passes_on = True
    roles = None
    writes_parameters = False

    def __init__(self, sites: tuple[HoistSpec, ...]) -> None:
        self.path = ""
        self.sites = sites
        self.token = uuid.uuid4().hex

    def prepare(self, host: nn.Module) -> None:
        """Nothing: there is no code of its own."""

    def without(self, name: str) -> None:
        """Forget one site."""
        self.sites = tuple(spec for spec in self.sites if spec.site != name)

    def forward_for_symbols(self, host: nn.Module) -> Any:
        """See `HostSurgery`."""
        return original_class(host).forward

    def follow(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As a part of another model: its hooks have run."""
        return original_class(host).forward(host, *args, **kwargs)

    def follow_root(self, host: nn.Module, run: Any, given: list[Any]) -> Any:
        """See `HostSurgery`."""
        return run(*hooked(host, self.forward_for_symbols(host), run, given))


def text_of_forward(module: nn.Module) -> FunctionText | None:
    """The forward that gets what a hook returns, as it is now; None where it has no code.

    The names of its arguments say what f and g are; torch's own forwards change in nothing else. What counts is where
    the function is from: classes derived on the way (torch shards a module by one) have it, too.
    """
    forward = unbound_function(module)
    home = getattr(forward, "__module__", None) or ""
    if home.split(".")[0] == "torch":
        return FunctionText(f"{home}:{forward.__qualname__}", "", str(inspect.signature(forward)))
    locator = Locator(original_class(module), forward)
    return None if locator.entry() is None else locator.text_of_entry()


def refuse_changed_forward(module: nn.Module, texts: tuple[FunctionText, ...], path: str) -> None:
    """Raises RewriteError where the forward is another than it was when the hook was planned, with the difference."""
    if texts:
        now = text_of_forward(module) or FunctionText(texts[0].name, "", "no code")
        refuse_another(texts[0], now, named_at(original_class(module), path))


def positions_of(module: nn.Module) -> dict[str, int]:
    """Index of each positional parameter of the module's forward; `*inputs` under the name `*inputs`.

    Raises:
        RewriteError: for a forward without a signature.
    """
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError) as error:
        raise RewriteError(f"{type(module).__name__}.forward has no signature to find arguments by: {error}") from error
    positions: dict[str, int] = {}
    for index, parameter in enumerate(parameters):
        if parameter.kind is parameter.VAR_POSITIONAL:
            positions["*" + parameter.name] = index
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            positions[parameter.name] = index
    return positions
