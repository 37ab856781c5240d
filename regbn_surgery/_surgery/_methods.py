"""Sites in further methods of a host that a rule names: `methods: [generate]` for a class that fuses there by itself.

The method's own code runs. Which call in it is the site is not known by its place, since the site was found in
`forward`: it is the call of the same function at which what comes out of the same two layers meets.

What it makes of them may go on from a cache afterwards, token by token, deep in a language model's own `generate`: see
`_continued`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from .. import _ops as fn
from .. import _tree
from .._errors import RegBNBypassedError, RewriteError
from .._trace import intercepted
from ._compiling import outside_graphs
from ._continued import Continued
from ._leaving import leaving
from ._record import CodeSite
from ._scatter import run_scatter
from ._site import site_at

Tag = tuple[str, str]  # (site, "f" or "g")


class _MethodPassage(TorchFunctionMode):
    """One run of the method: follows what the layers make, and lets RegBN in where both sides of a site meet."""

    def __init__(self, host: nn.Module, sites: tuple[CodeSite, ...], arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments  # of the method, by name: a mask over positions may be among them
        self.host = host
        self.sites = sites
        self.inside = False
        self.in_host = False  # the host's own forward runs, and sees to its sites itself
        self.reached: set[str] = set()
        self.continued: dict[str, Continued] = {}  # sites that have met in this run
        self.tags: Any = WeakIdKeyDictionary()  # tensor -> the tags of the layers it comes out of
        self.direct: Any = WeakIdKeyDictionary()  # tensor -> the layer that returned it, as it is
        self.makers: dict[int, set[Tag]] = {}
        for site in sites:
            for side, path in zip(("f", "g"), site.makers, strict=True):
                assert path is not None, "sites without layers behind them are refused"
                self.makers.setdefault(id(host.get_submodule(path)), set()).add((site.name, side))

    def on_call(
        self, call: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.inside:
            return self._within(call, module, args, kwargs)
        self.in_host = module is self.host
        with leaving(self):
            output = self._within(call, module, args, kwargs, top=True)
        self.in_host = False
        if module is self.host:
            self.reached.update(site.name for site in self.sites)
        made = {tag for child in module.modules() for tag in self.makers.get(id(child), ())}
        if made and len({side for _, side in made}) == 1:
            self._tag(output, made)
        for path in {site.makers[0] for site in self.sites} if isinstance(output, Tensor) else ():
            if module is self.host.get_submodule(str(path)):
                self.direct[output] = path
        return output

    def _within(
        self,
        call: Callable[..., Any],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        top: bool = False,
    ) -> Any:
        """A call of a module, at any depth: those that go on from where sites have met are seen to."""
        for continued in () if self.in_host else self.continued.values():
            if top or continued.concerns(module):
                call = continued.around(call, self._is_joint, top)
        return call(module, *args, **kwargs)

    def _is_joint(self, site: CodeSite, tensor: Tensor) -> bool:
        tags: frozenset[Tag] = self.tags.get(tensor, frozenset())
        return {(site.name, "f"), (site.name, "g")} <= tags

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = fn.name_of(func)
        if self.inside or fn.is_silent(func, name):
            return func(*args, **kwargs)
        if name == "__iter__":
            return iter(self.__torch_function__(torch.Tensor.unbind, types, (args[0], 0)))
        tensors = _tree.tensors((args, kwargs))
        tags = [self.tags.get(tensor, frozenset()) for tensor in tensors]
        site = next((site for site in self.sites if name == site.point_call and _meet(site, tags)), None)
        output = func(*args, **kwargs) if site is None else self._at(site, tags, func, args, kwargs)
        carried = frozenset[Tag]().union(*tags)
        if carried:
            self._tag(output if output is not None else args[0], set(carried))
        return output

    def _tag(self, value: Any, tags: set[Tag]) -> None:
        for tensor in _tree.tensors(value):
            self.tags[tensor] = frozenset(tags) | self.tags.get(tensor, frozenset())

    def _at(
        self, site: CodeSite, tags: list[frozenset[Tag]], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.reached.add(site.name)
        module = site_at(self.host, site.name)
        tensors = _tree.tensors((args, kwargs))
        mask = tuple(self.arguments.get(mask.argument) for mask in site.masks) or None
        with leaving(self):
            if site.scatter is not None:
                output = run_scatter(module, site.scatter, site.into_is_f, func, args, kwargs, (), mask)
                self._met(site, tensors[site.scatter.into], output)
                return output
            f, g = (next(t for t, own in zip(tensors, tags, strict=True) if (site.name, s) in own) for s in ("f", "g"))
            f_new, g_new = module(f, g, mask=mask)

            def change(_: str, leaf: Any) -> Any:
                if leaf is f:
                    return f_new
                return g_new if site.replace_g and leaf is g else leaf

            new_args, new_kwargs = _tree.rebuild((args, kwargs), change)
            output = func(*new_args, **new_kwargs)
            self._met(site, f, output)
            return output

    def _met(self, site: CodeSite, f: Tensor, output: Any) -> None:
        out = next(iter(_tree.tensors(output)), f)
        before = self.continued.get(site.name)
        made = self.direct.get(f)
        self.continued[site.name] = Continued(self.host, site, f, out, made == site.makers[0])
        if before is not None:
            self.continued[site.name].consumer = before.consumer


def _meet(site: CodeSite, tags: list[frozenset[Tag]]) -> bool:
    """Whether one operand comes out of f's layer alone and another out of g's."""
    f, g = (site.name, "f"), (site.name, "g")
    return any(f in own and g not in own for own in tags) and any(g in own and f not in own for own in tags)


@outside_graphs
def interposed_method(
    host: nn.Module, name: str, method: Callable[..., Any], sites: tuple[CodeSite, ...], args: Any, kwargs: Any
) -> Any:
    """Run a method of the host with RegBN at `sites`.

    Raises:
        RegBNBypassedError: where the method comes to its end without having come by them.
    """
    passage = _MethodPassage(host, sites, _named(method, args, kwargs))
    result = intercepted(passage, lambda: method(*args, **kwargs), passage)
    missed = [site.name for site in sites if site.name not in passage.reached]
    if missed:
        raise RegBNBypassedError(
            f"{type(host).__name__}.{name} is listed in `methods:`, but did not reach {', '.join(missed)}: the outputs "
            "of its two layers were not fused there. Remove the method from the rule, or give it both inputs."
        )
    return result


def _named(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name; of a method that cannot say, those that were given by name."""
    try:
        return _tree.bind(method, args, kwargs)
    except (TypeError, ValueError):
        return kwargs


def refuse_methods(site: CodeSite, methods: tuple[str, ...], cls: type[nn.Module]) -> None:
    """Raises RewriteError where a site cannot be found again in methods other than `forward`."""
    for name in methods:
        if not callable(getattr(cls, name, None)) or name == "forward":
            raise RewriteError(
                f"`methods: [{name}]` of {site.name}: {cls.__name__} has no such method besides forward. `methods:` "
                "lists methods of the module that contains the fusion, not of a model around it: outer methods that "
                "call its forward, as `generate` usually does, apply RegBN without being listed. Remove it from "
                "`methods:`"
            )
    if not methods:
        return
    together = site.operands and not site.f.looped and not site.g.looped
    if None in site.makers or not together or (site.scatter is not None and site.scatter.written):
        raise RewriteError(
            f"`methods: [{', '.join(methods)}]` of {site.name}: only sites at which the outputs of two layers of "
            f"{cls.__name__} are the operands of one call can be found again in another method"
        )


__all__ = ["interposed_method", "refuse_methods"]
