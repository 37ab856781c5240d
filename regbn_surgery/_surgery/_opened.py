"""Modules that a host's graph looks into, so that RegBN can go between the stages of two towers.

An opened module's own forward becomes part of the host's graph. What the module is asked for besides computing (hooks,
attributes that its forward reads or keeps) has to be watched from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.fx
from torch import nn

from .._analysis._across import Across, Spot, calls_of, first_read
from .._errors import RewriteError
from .._trace import Trace
from .._trace._watch import token
from ._guard import ATTRIBUTE

_REGISTRIES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MACHINERY = frozenset(nn.Module().__dict__)


def leaf_rule(opened: frozenset[str]) -> Callable[[nn.Module, str], bool]:
    """All children are calls but for the opened ones."""
    return lambda module, path: path not in opened


def refuse_hooks(host: nn.Module, opened: frozenset[str]) -> None:
    """Raises RewriteError where somebody, or another site, expects an opened module to be called."""
    for path in opened:
        module = host.get_submodule(path)
        if ATTRIBUTE in module.__dict__ or any(getattr(module, name, None) for name in _REGISTRIES):
            what = "has a RegBN of its own" if ATTRIBUTE in module.__dict__ else "has hooks"
            raise RewriteError(
                f"{type(module).__name__} at `{path}` of {type(host).__name__} {what}, but RegBN between a layer "
                "inside it and one of another module reorders its layers and never calls the module itself. Put the "
                "hooks on its submodules, or normalise its output."
            )


def states(host: nn.Module, opened: frozenset[str]) -> dict[tuple[str, str], Any]:
    """The plain attributes of opened modules, by path and name."""
    return {
        (path, name): token(value)
        for path in sorted(opened)
        for name, value in vars(host.get_submodule(path)).items()
        if name not in _MACHINERY
    }


def settings_of(
    host: nn.Module, before: dict[tuple[str, str], Any], after: dict[tuple[str, str], Any]
) -> tuple[tuple[str, Any], ...]:
    """What must still be as it was for a graph to hold.

    Raises:
        RewriteError: where the forward of an opened module keeps something on itself, which a graph would not.
    """
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if changed:
        path, name = changed[0]
        raise RewriteError(
            f"the forward of {type(host.get_submodule(path)).__name__} at `{path}` sets an attribute of itself "
            f"(`self.{name}`), which would not happen when its calls are reordered"
        )
    return tuple((f"{path}.{name}", value) for (path, name), value in before.items())


def nodes_of(trace: Trace, across: Across) -> tuple[torch.fx.Node, torch.fx.Node] | None:
    """The nodes of f and g; None where this kind of call does not come by both."""
    f, g = _node(trace, across.f), _node(trace, across.g)
    return None if f is None or g is None else (f, g)


def _node(trace: Trace, spot: Spot) -> torch.fx.Node | None:
    uid = _uid(trace, spot)
    if uid is None:
        return None
    for op in trace.calls:  # as its first reader got it: what a module returns may be packed up
        for position, read in enumerate(op.inputs):
            if read == uid and op.input_nodes[position] is not None:
                return op.input_nodes[position]
    return next((op.node for op in trace.calls if op.outputs == (uid,)), None)


def _uid(trace: Trace, spot: Spot) -> int | None:
    if spot.argument is not None:
        return dict(trace.inputs).get(spot.argument)
    made = next(calls_of(trace, spot.module or ""), None)
    if made is None or spot.output is None:
        return None if made is None else first_read(trace, *made)
    return made[1][spot.output] if spot.output < len(made[1]) else None


def readers_of(node: torch.fx.Node) -> list[torch.fx.Node]:
    """Who reads the values of a node, and not just its sizes."""
    return [user for user in node.users if not (user.target is getattr and user.args[1:] == ("shape",))]
