"""Lists, dicts and dataclasses that a forward, or a layer it calls, writes into: the very objects are written."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery._surgery import identity

from .models import build, counting, operate, operate_by, vectors


@dataclasses.dataclass
class Memory:
    seen: Tensor | None = None


class Keeping(nn.Module):
    """Adds up what it has seen in what it is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, memory: Any) -> Tensor:
        x = self.layer(x)
        if isinstance(memory, Memory):
            memory.seen = x = x if memory.seen is None else x + memory.seen
        elif isinstance(memory, dict):
            memory["seen"] = x = x + memory.get("seen", 0)
        elif memory is not None:
            memory.append(x)
            x = sum(memory)  # type: ignore[assignment]
        return x


class Remembers(nn.Module):
    """Hands on what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b, self.keeping = nn.Linear(6, 4), nn.Linear(5, 4), Keeping()

    def forward(self, a: Tensor, b: Tensor, memory: Any = None) -> Tensor:
        return self.keeping(torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1), memory)


class Writes(Remembers):
    """Writes into what it was given, itself."""

    def forward(self, a: Tensor, b: Tensor, memory: Any = None) -> Tensor:
        joint = torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1)
        if isinstance(memory, Memory):
            joint = joint if memory.seen is None else joint + memory.seen
            memory.seen = joint
        elif isinstance(memory, dict):
            joint = memory["seen"] = joint + memory.get("seen", 0)
        elif memory is not None:
            memory.append(joint)
            joint = sum(memory)  # type: ignore[assignment]
        return self.keeping.layer(joint)


class Passes(Remembers):
    """Makes a dict, in which one layer leaves something for the next."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        notes: dict[str, Tensor] = {}
        joint = self.keeping(torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1), notes)
        return joint + notes["seen"]


@pytest.mark.parametrize("way", ["source", "mode"])
@pytest.mark.parametrize("make", [dict, list, Memory], ids=["dict", "list", "dataclass"])
@pytest.mark.parametrize("cls", [Remembers, Writes])
def test_what_the_caller_gave_is_what_is_written(cls: type[nn.Module], make: Any, way: str) -> None:
    plain = build(cls).eval()
    rewritten = operate_by(way, plain, vectors()).eval()
    expected, found = make(), make()
    with torch.no_grad(), identity(rewritten):
        for seed in range(4):
            torch.testing.assert_close(
                rewritten(**vectors(seed=seed), memory=found), plain(**vectors(seed=seed), memory=expected)
            )
    fields = (lambda value: list(vars(value).items())) if make is Memory else list
    assert len(fields(found)) == len(fields(expected)) > 0
    with torch.no_grad(), counting(rewritten) as calls:
        rewritten(**vectors(), memory=found)
    assert sum(calls.values()) == 1


def test_what_one_layer_leaves_for_the_next_is_found() -> None:
    plain = build(Passes).eval()
    rewritten = operate(plain, vectors()).eval()
    for batch in (4, 4, 3):
        with torch.no_grad(), identity(rewritten):
            torch.testing.assert_close(rewritten(**vectors(batch, batch)), plain(**vectors(batch, batch)))
