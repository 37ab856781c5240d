"""`torch.fx.symbolic_trace` of a rewritten model: each RegBN becomes one call of the graph, of the module itself.

A host in code runs on the symbols with its places told to a `SymbolPassage`. One that cannot be followed (it runs
under a function mode, or from a graph of its own) is one call of the graph as a whole, where it is a part of the model.
"""

from __future__ import annotations

import sys
from types import FrameType, FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import Node, Proxy
from torch.fx import _symbolic_trace as tracing

from .._errors import RegBNBypassedError
from ..nn._symbols import symbols_in
from ._site import RegBNSite
from ._symbol_passage import NotFollowedError

if TYPE_CHECKING:
    from ._graph_host import GraphHost
    from ._hoist import HookedRoot
    from ._host import HostSurgery


def are_symbols(args: Any, kwargs: Any) -> bool:
    """Whether a host is called with symbols. A root's `*args` is one symbol as a whole."""
    if torch.compiler.is_compiling():
        return False
    if getattr(tracing, "_is_fx_tracing_flag", True):
        return next(symbols_in((args, kwargs)), None) is not None
    if type(args) is tuple and type(kwargs) is dict:
        return any(isinstance(value, Proxy) for value in (*args, *kwargs.values()))
    return isinstance(args, Proxy) or isinstance(kwargs, Proxy)


def follow(host: nn.Module, surgery: HostSurgery | GraphHost | HookedRoot, args: Any, kwargs: Any) -> Any:
    """The call of a host on symbols, with RegBN in it.

    Raises:
        RegBNBypassedError: where RegBN would be left out.
    """
    whole = isinstance(args, Proxy)
    tracer = next(symbols_in((args, kwargs))).tracer
    last = next(iter(reversed(tracer.graph.nodes)))
    try:
        if whole:
            return surgery.follow_root(host, *_signed(host, surgery.forward_for_symbols(host), args, kwargs))
        return surgery.follow(host, args, kwargs)
    except NotFollowedError as error:
        path = None if whole else _path_as_a_whole(tracer, host)
        if path is None:
            raise not_followed(host, str(error)) from error
        _take_back(tracer, last)
        return tracer.create_proxy("call_module", path, args, kwargs)


def follow_original(host: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
    """The call, on symbols, of a module of a rewritten class that has no RegBN."""
    if not isinstance(args, Proxy):
        return forward(host, *args, **kwargs)
    run, given = _signed(host, forward, args, kwargs)
    return run(*given)


def not_followed(host: nn.Module, why: str) -> RegBNBypassedError:
    """What to do where RegBN would be left out."""
    return RegBNBypassedError(
        f"torch.fx.symbolic_trace cannot follow {type(host).__name__} with RegBN in it: {why}. Use "
        "torch.export.export(model.eval(), example) for a graph with RegBN, regbn_surgery.trace(model, example) to "
        "look at one, or trace the model before regbnify."
    )


#: The method of a root that a tracer calls before it takes the forward of the class.
ASKED_BY_TRACERS = "_get_name"


class NameForTracers:
    """Stands as `_get_name` on a host whose RegBN its class does not know of: as a root it is traced without RegBN."""

    def __init__(self, host: nn.Module) -> None:
        self.host = host

    def __call__(self) -> str:
        caller = sys._getframe(1)
        if caller.f_globals.get("__name__") == tracing.__name__ and caller.f_locals.get("root") is self.host:
            raise not_followed(
                self.host, "tracers take the forward of its class, and its RegBN is on the instance alone"
            )
        return type(self.host).__name__


def _signed(host: nn.Module, forward: Any, args: Proxy, kwargs: Proxy) -> tuple[Any, list[Any]]:
    """A root's forward and the symbols that it is to be called with (the root first).

    The tracer has made one symbol each for the `*args` and `**kwargs` of our function around it: they give way to what
    the tracer makes of the user's own.
    """
    if not isinstance(forward, FunctionType):
        raise NotFollowedError(f"its forward is a {type(forward).__name__}, no function")
    tracer: Any = args.tracer
    for symbol in (kwargs, args):
        tracer.graph.erase_node(symbol.node)
    run, given = tracer.create_args_for_root(forward, True, _concrete(tracer))
    return run, list(given)


def _concrete(tracer: Any) -> Any:
    """The `concrete_args` of the tracing that runs: the tracer keeps them in a local variable alone."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_locals.get("self") is tracer and "concrete_args" in frame.f_locals:
            return frame.f_locals["concrete_args"]
        frame = frame.f_back
    return None


def _path_as_a_whole(tracer: Any, host: nn.Module) -> str | None:
    """The path of a host that a graph can call as a whole: it holds each of its RegBN, and is not the root."""
    inside = set(host.modules())
    if any(isinstance(value, RegBNSite) and value not in inside for value in vars(host).values()):
        return None
    try:
        return tracer.path_of_module(host) or None
    except (AttributeError, NameError):
        return None


def _take_back(tracer: Any, last: Node) -> None:
    """Take nodes behind `last` out of the graph again. Parameters stay, since the tracer hands their nodes out anew."""
    for node in reversed(list(tracer.graph.nodes)):
        if node is last:
            return
        if node.op != "get_attr":
            tracer.graph.erase_node(node)
