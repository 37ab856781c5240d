"""A RegBN that the author has placed is one call: f' goes on as f does, g' as g, and nothing meets inside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import RegBN, inspect, regbnify
from regbn_surgery.nn import RegressOut


class Published(nn.Module):
    """One of that name with layers and a calculation of its own, and a call of its own."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(sizes[1], sizes[0]))

    def forward(self, f: Tensor, g: Tensor, is_training: bool = True) -> tuple[Tensor, Tensor]:
        return f - g @ self.weight, g


Published.__name__ = "RegBN"


class Derived(RegBN):
    """One of another name."""


class Net(nn.Module):
    def __init__(self, made: Any = RegBN) -> None:
        super().__init__()
        self.image, self.table, self.bn, self.head = nn.Linear(6, 8), nn.Linear(5, 4), made(8, 4), nn.Linear(12, 2)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        f, g = self.bn(self.image(image), self.table(table))
        return self.head(torch.cat([f, g], 1))


def inputs(batch: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {
        "image": torch.randn(batch, 6, generator=generator),
        "table": torch.randn(batch, 5, generator=generator),
    }


@pytest.mark.parametrize("made", [RegBN, RegressOut, Derived, Published])
def test_only_what_comes_after_it_meets(made: Any) -> None:
    found = inspect(Net(made), inputs())
    assert [(point.id, [side.home for side in point.sites[0].sides]) for point in found.fusion_points] == [
        ("cat", [("image",), ("table",)])
    ]
    (note,) = (note for note in found.notes if note.startswith("RB017"))
    assert "a RegBN of its own (`bn` at " in note
    assert "test_placed_by_hand.py" in note


@pytest.mark.parametrize("order", ["fg", "gf"])
def test_its_arguments_may_be_named(order: str) -> None:
    class Named(Net):
        def forward(self, image: Tensor, table: Tensor) -> Tensor:
            given = {"f": self.table(table), "g": self.image(image)}
            f, g = self.bn(**{name: given[name] for name in order})
            return self.head(torch.cat([f, g], 1))

    (point,) = inspect(Named(lambda f, g: RegBN(g, f)), inputs()).fusion_points
    assert [side.home for side in point.sites[0].sides] == [("table",), ("image",)]


def test_a_rule_adds_another_one_behind_it() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    rules = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "table"}]}
    rewritten: Any = regbnify(model, rules, inputs())
    for batch in (4, 7):
        rewritten.train()(**inputs(batch))
    assert (int(rewritten.bn.num_steps), int(rewritten.regbn_late.regbn.num_steps)) == (2, 2)
    twin: Any = copy.deepcopy(rewritten).eval()
    f, g = twin.bn(twin.image(inputs(3)["image"]), twin.table(inputs(3)["table"]))
    g, f = twin.regbn_late.regbn(g, f)
    torch.testing.assert_close(rewritten.eval()(**inputs(3)), twin.head(torch.cat([f, g], 1)))


def test_a_model_without_one_has_no_note() -> None:
    class Plain(Net):
        def forward(self, image: Tensor, table: Tensor) -> Tensor:
            return self.head(torch.cat([self.image(image), self.table(table)], 1))

    assert not [note for note in inspect(Plain(), inputs()).notes if note.startswith("RB017")]
