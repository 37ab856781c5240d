"""Sums of losses and other single numbers are kind `loss`, which no rule selects unless it names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbn_surgery import regbnify

from .reading import inputs, make, points, told

AB = inputs(a=(6,), b=(7,))
LAYERS = {"one": nn.Linear(6, 5), "two": nn.Linear(7, 5)}

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "module": lambda x, y: nn.CrossEntropyLoss()(x, y),
    "for each sample": lambda x, y: F.cross_entropy(x, y, reduction="none"),
    "by hand": lambda x, y: -x.log_softmax(-1).gather(1, y[:, None]).mean(),
    "penalty": lambda x, y: x.square().sum(),
    "norm": lambda x, y: x.norm(),
}
TOTALS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda a, b: a + b,
    "weighted": lambda a, b: 0.3 * a + b / 2,
    "builtin": lambda a, b: sum([a, b]),  # type: ignore[return-value]
    "mean": lambda a, b: torch.stack([a, b]).mean(),
    "in place": lambda a, b: a.clone().add_(b),
    "worst": lambda a, b: torch.maximum(a, b),
    "product": lambda a, b: a * b,
    "ratio": lambda a, b: a / (1 + b.detach()),
    "rows": lambda a, b: torch.cat([a[None], b[None]]).sum(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("total", TOTALS)
def test_a_total_of_losses_is_a_loss(loss: str, total: str) -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        labels = torch.zeros(len(a), dtype=torch.long)
        return TOTALS[total](LOSSES[loss](self.one(a), labels), LOSSES[loss](self.two(b), labels))

    (point,) = points(forward, AB, **LAYERS)
    assert (point.kind, point.selected_by_default, point.homes) == ("loss", False, (("a",), ("b",)))


def test_a_mixed_loss_and_a_pure_one() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        x, y = self.one(a), self.two(b)
        return F.mse_loss(torch.cat([x, y], 1), torch.zeros(len(a), 10)) + x.square().mean()

    found = points(forward, AB, **LAYERS)
    assert [(point.kind, point.level, point.note) for point in found] == [("concat", "late", ""), ("loss", "late", "")]


def test_features_made_of_a_number_are_features() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return self.one(a) + self.two(b).mean() * self.weight

    assert told(forward, AB, **LAYERS, weight=nn.Parameter(torch.ones(5))) == [("sum", {"a", "b"})]


def test_a_rule_for_all_points_leaves_losses_alone() -> None:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        x, y = self.one(a), self.two(b)
        labels = torch.zeros(len(a), dtype=torch.long)
        return F.cross_entropy(x + y, labels) + F.cross_entropy(x, labels) + F.cross_entropy(y, labels)

    model = make(forward, **LAYERS)
    rules = {"version": 1, "rules": [{"id": "all", "match": {}, "pairs": "all"}]}
    assert len([name for name, _ in regbnify(model, rules, AB).named_modules() if name.endswith(".regbn")]) == 1
