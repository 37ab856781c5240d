"""What a hand-written case is, and the registry that the files of cases add to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from regbn_surgery import Inputs

from ._faith import Call

MakeInputs = Callable[[int], Inputs]


def vectors(batch: int) -> Inputs:
    return Inputs(torch.randn(batch, 6), torch.randn(batch, 5))


def sequences(batch: int, length: int = 4) -> Inputs:
    return Inputs(torch.randn(batch, length, 6), torch.randn(batch, length, 5))


def usual_calls(make: MakeInputs) -> list[Call]:
    """Other values, other batch sizes, both modes, in an order that comes back to each kind of call."""
    plan = [(4, True), (4, True), (2, False), (3, False), (7, True), (9, False), (2, True), (4, True), (16, False)]
    calls = []
    for seed, (batch, train) in enumerate(plan):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(500 + seed)
            calls.append(Call(make(batch), train, seed=seed))
    return calls


@dataclass(frozen=True)
class Case:
    """A model as researchers write them. `open` says which failure of the library is not mended yet."""

    build: Callable[[], nn.Module]
    make: MakeInputs = vectors
    calls: Callable[[MakeInputs], Sequence[Call]] = usual_calls
    kind: str | None = "concat"
    normalize: str | None = "a"
    points: int = 1
    pickles: bool = True
    open: str | None = None

    @property
    def name(self) -> str:
        return self.build.__name__

    def __str__(self) -> str:
        return self.name

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build()

    def rules(self) -> dict[str, Any]:
        match = {} if self.kind is None else {"kind": self.kind}
        direction = {"pairs": "all"} if self.normalize is None else {"normalize": self.normalize}
        return {"version": 1, "rules": [{"id": "r", "match": match, **direction}]}

    def example_inputs(self) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(99)
            return self.make(4)


CASES: list[Case] = []


def case(**options: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a model class (built without arguments) as a case."""

    def register(cls: Any) -> Any:
        CASES.append(Case(cls, **options))
        return cls

    return register
