"""The models of these tests, and how they are watched: which f and which g RegBN was given, and how often."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regbn_surgery import RegBN, regbnify

WIDTH = 8
INPUTS = {"a": 5, "b": 7, "c": 6}

Fusion = Callable[[Sequence[Tensor]], Tensor]


def concatenated(operands: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(operands), 1)


def stacked(operands: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(operands), 1).flatten(1)


def added(operands: Sequence[Tensor]) -> Tensor:
    first, *others = operands
    return first + others[0] if others else first


def multiplied(operands: Sequence[Tensor]) -> Tensor:
    first, *others = operands
    return first * others[0] if others else first


def outer_product(operands: Sequence[Tensor]) -> Tensor:
    first, *others = operands
    return torch.einsum("bi,bj->bij", first, others[0]).flatten(1) if others else first


#: A fusion, and what a rule calls it. Each is one line that a second pair can come by.
FUSIONS: dict[str, tuple[Fusion, str]] = {
    "cat": (concatenated, "concat"),
    "stack": (stacked, "concat"),
    "sum": (added, "sum"),
    "product": (multiplied, "product"),
    "outer product": (outer_product, "matmul"),
}


class Fuse(nn.Module):
    """Receives the branches as one list: where RegBN can go in by a hook."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, branches: Sequence[Tensor]) -> Tensor:
        return self.fusion(branches)


class Branches(nn.Module):
    """Three branches. `order` names the branches that meet, `others` those that meet at the same line after them."""

    def __init__(self, fusion: Fusion, where: str) -> None:
        super().__init__()
        self.fa, self.fb, self.fc = (nn.Linear(width, WIDTH) for width in INPUTS.values())
        self.fuse = Fuse(fusion) if where == "child" else nn.Identity()
        self.head = nn.Linear(WIDTH * WIDTH, 3)
        self.fusion, self.where = fusion, where

    def join(self, branches: Sequence[Tensor]) -> Tensor:
        return self.fusion(branches)

    def forward(
        self, a: Tensor, b: Tensor, c: Tensor, order: str = "ab", others: str = "", first: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        made = {"a": self.fa(a), "b": self.fb(b), "c": self.fc(c)}
        if self.where == "value" and a.sum().item() > 1e9:
            return self.head.bias.expand(len(a), -1)
        pairs = [others, order] if first else [order, others]
        return tuple(self.finish(self.meet([made[name] for name in pair])) for pair in pairs if pair)

    def meet(self, branches: Sequence[Tensor]) -> Tensor:
        if self.where == "child":
            met: Tensor = self.fuse(branches)
            return met
        return self.join(branches) if self.where == "method" else self.fusion(branches)

    def finish(self, z: Tensor) -> Tensor:
        return nn.functional.linear(z, self.head.weight[:, : z.shape[1]], self.head.bias)


#: Where the joining call stands.
OWNERS = ["function", "method", "child", "value"]


class Outer(nn.Module):
    """Puts `Branches` one level deeper, with inputs under the same names."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, a: Tensor, b: Tensor, c: Tensor, **kwargs: Any) -> Any:
        return self.inner(a, b, c, **kwargs)


def branches(fusion: str, where: str, depth: int = 0) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = Branches(FUSIONS[fusion][0], where)
    for _ in range(depth):
        model = Outer(model)
    return model


def rule(kind: str = "concat", normalize: str = "a", against: str = "b", **regbn: Any) -> dict[str, Any]:
    """Return a rules document with one rule, `r`."""
    match = {"kind": kind, "between": [normalize, against]}
    rules = {"id": "r", "match": match, "normalize": normalize, "against": against, "regbn": regbn}
    return {"version": 1, "rules": [rules]}


def batch(size: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (torch.randn(size, width, generator=generator) for width in INPUTS.values())
    return a, b, c


def trained(model: nn.Module, rules: dict[str, Any], example: Any, steps: int = 3) -> nn.Module:
    """Return the model with RegBN whose projection is not zero: calls in training as in the example have moved it."""
    rewritten = regbnify(model, rules, example)
    torch.manual_seed(1)
    for _ in range(steps):
        rewritten.train()(*(torch.randn_like(x) if x.is_floating_point() else x for x in example))
    return rewritten


def regbns(model: nn.Module) -> list[RegBN]:
    return [module for module in model.modules() if isinstance(module, RegBN)]


def state(model: nn.Module) -> list[Tensor]:
    """Return a copy of what RegBN has learnt."""
    return [value.clone() for regbn in regbns(model) for value in regbn.buffers()]


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Note the f and the g of each run of RegBN, flat."""
    runs: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, inputs: tuple[Any, ...], __: Any) -> None:
        runs.append((inputs[0].detach().flatten(1), inputs[1].detach().flatten(1)))

    handles = [regbn.register_forward_hook(note) for regbn in regbns(model)]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def by_hand(model: nn.Module, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the model's one RegBN makes of f and g in evaluation, without moving anything."""
    (regbn,) = regbns(model)
    with torch.no_grad():
        f_new, g_new = regbn(f, g, is_training=False)
    return f_new, g_new
