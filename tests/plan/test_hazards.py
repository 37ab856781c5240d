"""What a plan warns of: values that RegBN takes out of their range, and projections that add up."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import RegBN, RegBNWarning, inspect, plan, regbnify
from regbn_surgery._starter import starter_rules

Function = Callable[[Tensor], Tensor]
EXAMPLE = torch.randn(4, 5), torch.randn(4, 6)


def rules(kind: str = "concat", **more: Any) -> dict[str, Any]:
    return {"version": 1, "rules": [{"id": "r", "match": {"kind": kind}, "normalize": "x", **more}]}


class Experts(nn.Module):
    """A product of experts: their variances are stacked, and what is computed of these has a root in the end."""

    def __init__(self, positive: Function, after: Function, by_pair: bool = False) -> None:
        super().__init__()
        self.mean, self.spread = (nn.ModuleList([nn.Linear(5, 8), nn.Linear(6, 8)]) for _ in range(2))
        self.head, self.positive, self.after, self.by_pair = nn.Linear(8, 2), positive, after, by_pair

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        means = torch.stack([layer(z) for layer, z in zip(self.mean, (x, y), strict=True)])
        spreads = [self.positive(layer(z)) for layer, z in zip(self.spread, (x, y), strict=True)]
        precision = 1 / (torch.stack(spreads) + 1e-8)
        variance = 1 / precision.sum(0)
        found: Tensor = self.head((means * precision).sum(0) * variance + self.after(variance))
        return found


POSITIVE: list[Function] = [
    torch.exp,
    nn.functional.softplus,
    torch.sigmoid,
    lambda x: x**2,
    lambda x: x.exp().clamp(min=1e-6).view(-1, 8),
]
ROOTS: list[Function] = [
    torch.sqrt,
    torch.log,
    lambda x: x**0.5,
    lambda x: x.rsqrt(),
    lambda x: 0.5 * x.log().sum(1, keepdim=True),
]


@pytest.mark.parametrize("positive", POSITIVE)
@pytest.mark.parametrize("after", ROOTS[:2])
def test_a_positive_value_of_which_a_root_is_taken(positive: Function, after: Function) -> None:
    model = Experts(positive, after)
    with pytest.warns(RegBNWarning, match=r"at `stack_1` takes x .*out of its range, so that the result may be NaN"):
        made = plan(model, rules(), EXAMPLE)
    assert {site.point for site in made.sites} == {"stack", "stack_1"}
    text = starter_rules(model, EXAMPLE)
    assert "point: stack}\n    normalize" in text
    assert "# Not possible as it is: RegBN of `concat-2` at `stack_1` takes x" in text


@pytest.mark.parametrize("after", ROOTS)
def test_every_root_logarithm_and_power(after: Function) -> None:
    found = inspect(Experts(torch.exp, after), EXAMPLE)
    assert [point.sites[0].sides[0].bounded is not None for point in found.fusion_points] == [False, True]


@pytest.mark.parametrize(
    ("positive", "after"),
    [
        (torch.exp, lambda x: x),
        (torch.exp, lambda x: x**2),
        (torch.exp, lambda x: torch.sqrt(x.abs() + 1)),
        (torch.exp, lambda x: nn.functional.normalize(x, dim=1)),
        (torch.exp, lambda x: torch.sqrt((x * x).sum(1, keepdim=True))),
        (torch.exp, lambda x: torch.log(torch.softmax(x, 1))),
        (lambda x: x, torch.sqrt),
        (lambda x: x.exp() - 1, torch.sqrt),
        (lambda x: -1 * x.exp(), torch.sqrt),
        (torch.exp, nn.LayerNorm(8)),
    ],
)
def test_what_has_no_range_or_gets_a_new_one_is_not_told(positive: Function, after: Function) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        warnings.filterwarnings("ignore", "RB016")  # some give NaN by themselves, which is told as well
        made = plan(Experts(positive, after), rules(), EXAMPLE)
    assert len(made.sites) == 2


def test_the_nan_that_is_warned_of_does_come() -> None:
    torch.manual_seed(0)
    model = Experts(torch.exp, torch.sqrt)
    with pytest.warns(RegBNWarning):
        result = regbnify(model, rules(), EXAMPLE).train()
    x = torch.randn(64, 5)
    assert not torch.isfinite(result(x, torch.cat([x, x[:, :1]], dim=1))).all()


def test_g_that_stays_as_it_is_does_not_leave_its_range() -> None:
    class OneSide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x, self.y, self.head = nn.Linear(5, 8), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            both = torch.stack([self.x(x) + 100, torch.exp(self.y(y))])
            found: Tensor = self.head(both.mean(0).log())
            return found

    with pytest.warns(RegBNWarning, match="takes y"):
        plan(OneSide(), rules(), EXAMPLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        plan(OneSide(), rules(replace="f"), EXAMPLE)


class Deep(nn.Module):
    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.a, self.b = (nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(rounds)) for _ in "ab")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out = torch.zeros(len(x), 2)
        for a, b in zip(self.a, self.b, strict=True):
            x, y = a(x), b(y)
            out = out + (x + y).mean((2, 3))
        return out


MAPS = torch.randn(4, 2, 16, 16), torch.randn(4, 2, 16, 16)
ONE = 512 * 512 * 4 / 2**30  # GiB of one W


@pytest.mark.parametrize(
    ("rounds", "limit", "told"), [(4, 3.5 * ONE, True), (4, 4.5 * ONE, False), (1, 1.5 * ONE, False)]
)
def test_small_projections_that_are_large_together(rounds: int, limit: float, told: bool) -> None:
    options = {"max_dense_gib": limit}
    said = {"version": 1, "rules": [{"id": "s", "match": {"kind": "sum"}, "pairs": "all", "regbn": options}]}
    made = None
    if told:
        total = 4 * ONE
        needs = f"{total:.3g} GiB in all, .*above max_dense_gib=.*regbnify needs about {2 * total:.3g} GiB"
        with pytest.warns(RegBNWarning, match=needs):
            made = plan(Deep(rounds), said, MAPS)
        assert any("W at 4 sites" in text for text in made.warnings)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RegBNWarning)
            made = plan(Deep(rounds), said, MAPS)
    assert len(made.sites) == rounds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegBNWarning)
        result = regbnify(Deep(rounds), said, MAPS)
    held = sum(b.numel() * 4 for n, b in result.named_buffers() if b.shape == (512, 512)) / 2**30
    assert held == pytest.approx(rounds * ONE)
    assert sum(isinstance(module, RegBN) for module in result.modules()) == rounds


def test_small_forms_of_w_do_not_count() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RegBNWarning)
        for more in ({"reduce": "mean"}, {"regbn": {"projection": "low_rank", "max_dense_gib": ONE}}):
            rule = {"id": "s", "match": {"kind": "sum"}, "pairs": "all", **more}
            assert len(plan(Deep(4), {"version": 1, "rules": [rule]}, MAPS).sites) == 4
