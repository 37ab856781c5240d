"""Rows without a table at a gate: what docs/regbn.md advises, for each of which g is zero in these rows; and calls that
leave stages out."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import RegBN, RegBNWarning, plan, regbnify

MATCH: dict[str, Any] = {
    "version": 1,
    "rules": [
        {"id": "gate", "match": {"kind": "product"}, "normalize": "scan", "against": "table", "replace": "f"},
    ],
}
PAIR: dict[str, Any] = {
    "version": 1,
    "rules": [
        {"id": "gate", "pair": {"f": "module:scan_branch", "g": "module:table_branch"}, "replace": "f"},
    ],
}


class Branch(nn.Linear):
    def forward(self, table: Tensor, present: Tensor | None = None) -> Tensor:
        features = super().forward(table)
        return features if present is None else features * present[:, None]


class Gated(nn.Module):
    def __init__(self, zeroed: str, bias: bool = True) -> None:
        super().__init__()
        self.zeroed = zeroed
        self.scan_branch, self.table_branch = nn.Linear(8, 6), Branch(5, 6)
        self.gate, self.head = nn.Linear(6, 6, bias=bias), nn.Linear(6, 2)

    def forward(self, scan: Tensor, table: Tensor, present: Tensor) -> Tensor:
        gate = self.gate(self.table_branch(table, present))
        if self.zeroed == "product":
            gate = gate * present[:, None]
        elif self.zeroed == "where":
            gate = torch.where(present[:, None], gate, 0.0)
        return self.head(self.scan_branch(scan) * torch.sigmoid(gate))


def rows_without_table(model: nn.Module, rules: dict[str, Any]) -> tuple[float, str]:
    """The largest number of g in rows without a table, and what `plan` says."""
    torch.manual_seed(0)
    present = torch.arange(16) % 2 == 0
    example = (torch.randn(16, 8), torch.randn(16, 5), present)
    seen: list[Tensor] = []
    rewritten = regbnify(model, rules, example).train()
    (regbn,) = (module for module in rewritten.modules() if isinstance(module, RegBN))
    regbn.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    rewritten(*example)
    return float(seen[0][~present].abs().max()), str(plan(model, rules, example))


@pytest.mark.parametrize("zeroed", ["before", "product"])
def test_a_layer_with_a_bias_makes_them_other_than_zero_and_plan_names_it(zeroed: str) -> None:
    largest, told = rows_without_table(Gated(zeroed), MATCH)
    assert largest > 0.01
    assert "Linear `gate`" in told


@pytest.mark.parametrize(
    ("model", "rules"),
    [(Gated("where"), MATCH), (Gated("before", bias=False), MATCH), (Gated("before"), PAIR)],
)
def test_the_remedies_leave_them_zero(model: nn.Module, rules: dict[str, Any]) -> None:
    largest, told = rows_without_table(model, rules)
    assert largest == 0.0
    assert "Linear `gate`" not in told or model.gate.bias is None


class Stages(nn.Module):
    """Two fusions, of which a call runs one, both or none."""

    def __init__(self) -> None:
        super().__init__()
        self.scan_branch, self.table_branch = nn.Linear(8, 6), nn.Linear(5, 6)
        self.scan_later, self.table_later = nn.Linear(8, 6), nn.Linear(5, 6)
        self.head, self.prior = nn.Linear(12, 6), nn.Parameter(torch.zeros(6))

    def forward(self, scan: Tensor, table: Tensor, stages: tuple[int, ...] = (0, 1)) -> Tensor:
        out = self.prior.expand(len(scan), 6)
        if 0 in stages:
            out = out + self.head(torch.cat([self.scan_branch(scan), self.table_branch(table)], 1))
        if 1 in stages:
            out = out + self.head(torch.cat([self.scan_later(scan), self.table_later(table)], 1))
        return out


def test_a_call_in_which_nothing_meets_is_told_but_not_each_stage_that_was_not_asked_for() -> None:
    rules = {"version": 1, "rules": [{"id": "r", "match": {"kind": "concat"}, "normalize": "scan", "against": "table"}]}
    example = (torch.randn(16, 8), torch.randn(16, 5))
    model = regbnify(Stages(), rules, example).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        model(*example)
        model(*example, stages=(0,))
        model(*example, stages=(1,))
    steps = {name: int(module.num_steps) for name, module in model.named_modules() if isinstance(module, RegBN)}
    assert steps == {"regbn_r.regbn": 2, "regbn_r_1.regbn": 2}
    with pytest.warns(RegBNWarning, match="RB401 .*neither f nor g was computed") as told:
        model(*example, stages=())
    assert [warning.filename for warning in told] == [__file__] * 2  # the user's call, not a line of the package
