"""What the generator writes with: tensors in a forward being written, and the class around it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field

Home = frozenset[str]


@dataclass(frozen=True)
class Value:
    """A tensor in the forward being written: its variable, the stream it belongs to, and how it lies.

    `layout` is `vec` [B, C], `seq` [B, L, C], `first` [L, B, C] or `map` [B, C, H, H]; `size` is L or H.
    """

    name: str
    home: Home
    layout: str
    channels: int
    size: int = 0
    lent: bool = False  # values of another stream stand in it, by an attention without a residual connection
    squashed: bool = False  # through a sigmoid or the like, and no layer since: as an operand of a product, a gate


@dataclass
class Scope:
    """A class being written: lines of `__init__`, lines of `forward`, and where its instance will be."""

    path: str
    init: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    names: itertools.count = field(default_factory=itertools.count)  # type: ignore[type-arg]
    methods: list[tuple[str, str, list[str]]] = field(default_factory=list)

    def module(self, expression: str, label: str = "layer") -> str:
        name = f"{label}{next(self.names)}"
        self.init.append(f"self.{name} = {expression}")
        return name

    def fresh(self, label: str = "x") -> str:
        return f"{label}{next(self.names)}"

    def under(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def class_text(name: str, scope: Scope, signature: str, render: Callable[[list[str]], list[str]]) -> str:
    def method(label: str, given: str, lines: list[str]) -> str:
        return f"\n    def {label}({given}):\n" + "".join(f"        {line}\n" for line in render(lines))

    init = "".join(f"        {line}\n" for line in scope.init)
    methods = [method("forward", signature, scope.body), *(method(*one) for one in scope.methods)]
    return f"\nclass {name}(nn.Module):\n    def __init__(self):\n        super().__init__()\n{init}" + "".join(methods)


def unmarked(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("#@")]


def marked(lines: list[str]) -> list[str]:
    """`x9 = torch.cat([x3, x5], 1)` as `t0, t1 = at(7, x3, x5)` and `x9 = torch.cat([t0, t1], 1)`."""
    written: list[str] = []
    pending: list[str] | None = None
    for line in lines:
        if line.startswith("#@"):
            _, number, *pending = line.split()
            fresh = [f"t{number}_{i}" for i in range(len(pending))]
            written.append(f"{', '.join(fresh)} = at({number}, {', '.join(pending)})")
            continue
        if pending is not None:
            target, call = line.split(" = ", 1)
            for old, new in zip(pending, fresh, strict=True):
                call = re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", new, call)
            line, pending = f"{target} = {call}", None
        written.append(line)
    return written
