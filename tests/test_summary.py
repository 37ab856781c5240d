"""`summary`: what each RegBN holds, its share of memory, and that nothing is left behind by the timing."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from regbn_surgery import CaptureError, RewriteError, Summary, regbnify, summary
from regbn_surgery._report.summary import bytes_text


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 8), nn.Linear(5, 6), nn.Linear(14, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.left(x), self.drop(self.right(y))], dim=1))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.more = Two(), nn.Linear(2, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.more(self.inner(x, y))


def example() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 4), torch.randn(6, 5)


def rewritten() -> nn.Module:
    rule = {"id": "late", "match": {"kind": "concat"}, "normalize": "x", "regbn": {"affine": True}}
    return regbnify(Outer(), {"version": 1, "rules": [rule]}, example())


def test_what_is_held_is_counted() -> None:
    model = rewritten()
    found = summary(model)
    (row,) = found.rows
    site = model.get_submodule("inner.regbn_late")
    assert (row.name, row.host, row.host_class) == ("inner.regbn_late", "inner", "Two")
    assert row.host_parameters == sum(p.numel() for p in Two().parameters()), "those of RegBN are counted apart"
    assert row.parameters == sum(p.numel() for p in site.parameters()) > 0
    assert row.buffer_elements == sum(b.numel() for b in site.buffers()) >= 6 * 8
    held = [*model.parameters(), *model.buffers()]
    assert found.state_bytes == sum(t.numel() * t.element_size() for t in held)
    assert found.memory_share == row.state_bytes / found.state_bytes
    assert (found.seconds, found.time_share, row.seconds) == (None, None, None)
    assert found.model == "Outer"


@pytest.mark.parametrize("training", [False, True])
def test_timing_leaves_the_model_as_it_was(training: bool) -> None:
    model = rewritten().train()
    inputs, before = example(), copy.deepcopy(model.state_dict())
    random = torch.random.get_rng_state()
    hooks = {path: (len(m._forward_hooks), len(m._forward_pre_hooks)) for path, m in model.named_modules()}
    found = summary(model, inputs, calls=2, training=training)
    assert found.seconds is not None
    assert found.rows[0].seconds is not None
    assert 0 < found.rows[0].seconds <= found.seconds
    assert found.time_share == found.rows[0].seconds / found.seconds
    assert found.training == training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    assert model.training
    assert hooks == {path: (len(m._forward_hooks), len(m._forward_pre_hooks)) for path, m in model.named_modules()}


def test_after_an_error_too() -> None:
    model = rewritten()
    model.more = nn.Linear(9, 9)
    with pytest.raises(CaptureError, match="Outer could not be run"):
        summary(model, example())
    assert not any(module._forward_hooks for module in model.modules() if type(module).__name__ == "RegBNSite")


def test_the_table_and_the_json() -> None:
    found = summary(rewritten(), example())
    text = str(found)
    assert text.startswith("Outer: 1 RegBN, ")
    for part in ("inner.regbn_late", "Two", "parameters", "in evaluation, best of 3"):
        assert part in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    content = json.loads(json.dumps(found.to_dict()))
    assert content["sites"][0]["state_bytes"] == found.rows[0].state_bytes
    assert "time" not in str(summary(rewritten())).splitlines()[2]


def test_a_model_without_regbn() -> None:
    with pytest.raises(RewriteError, match="nothing to summarise"):
        summary(Two())


@pytest.mark.parametrize(("size", "text"), [(812, "812 B"), (37376, "36.5 KiB"), (5 * 2**30, "5 GiB")])
def test_sizes(size: int, text: str) -> None:
    assert bytes_text(size) == text


def test_shares_of_nothing() -> None:
    assert Summary("M", 0, 0, (), 0.0).memory_share == 0.0
    assert Summary("M", 0, 0, (), 0.0).time_share == 0.0
