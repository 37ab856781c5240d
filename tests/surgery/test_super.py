"""A forward that calls that of its base class, in which the modalities meet: eagerly and compiled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import regbnify

RULES = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "image", "against": "table"}]}


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(3, 6), nn.Linear(14, 2)

    def forward(self, image: Tensor, table: Tensor) -> Any:
        return self.head(torch.cat([self.a(image), self.b(table)], dim=-1))


class Child(Base):
    def forward(self, image: Tensor, table: Tensor) -> Any:
        return super().forward(image, table) * 2


class Grandchild(Child):
    def forward(self, image: Tensor, table: Tensor) -> Any:
        return super().forward(image, table) + 1


def example(batch: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {name: torch.randn(batch, size, generator=generator) for name, size in (("image", 4), ("table", 3))}


@pytest.mark.parametrize("cls", [Base, Child, Grandchild])
def test_a_compiled_one_computes_what_it_does_eagerly(cls: type[nn.Module]) -> None:
    torch._dynamo.reset()
    eager: Any = regbnify(cls(), RULES, example()).train()
    ours = copy.deepcopy(eager)
    compiled = torch.compile(ours, backend="eager")
    for batch in (8, 5):
        torch.testing.assert_close(compiled(**example(batch)), eager(**example(batch)))
    assert int(ours.regbn_late.regbn.num_steps) == int(eager.regbn_late.regbn.num_steps) == 2
    torch.testing.assert_close(ours.regbn_late.regbn.W, eager.regbn_late.regbn.W)
    torch.testing.assert_close(compiled.eval()(**example(3)), eager.eval()(**example(3)))
