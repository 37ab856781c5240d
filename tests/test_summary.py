"""`summary`: what each RegBN holds, its share of memory, and that nothing is left behind by the timing."""

from __future__ import annotations

import copy
import itertools
import json
import time

import pytest
import torch
from torch import nn

from regbn_surgery import CaptureError, RewriteError, Summary, _summary, regbnify, summary
from regbn_surgery._report.summary import bytes_text
from regbn_surgery._summary import HostSummary, RegBNSummary


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
    for part in ("inner", "regbn_late", "Two", "parameters", "in evaluation, median of 9"):
        assert part in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    content = json.loads(json.dumps(found.to_dict()))
    assert content["sites"][0]["state_bytes"] == found.rows[0].state_bytes
    assert "time" not in str(summary(rewritten())).splitlines()[2]


class Nest(nn.Module):
    """A host with two RegBN around one host, called in two roles, and a third beside them; two weights are shared."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.beside, self.z, self.rest = Two(), Two(), nn.Linear(3, 2), nn.Linear(2, 2)
        self.beside.left.weight = self.inner.left.weight

    def forward(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        first, second = self.inner(x, y), self.beside(x, y)
        return self.rest(first + second).sum(1, keepdim=True) + torch.cat([first, self.z(z)], 1)


def test_each_tensor_counts_once_and_the_rows_add_up() -> None:
    inputs = (*example(), torch.randn(6, 3))
    rules = {"version": 1, "rules": [
        {"id": "pairs", "match": {"kind": "concat", "level": ["early", "middle", "late"]}, "pairs": "all"},
        {"id": "more", "match": {"kind": "concat", "owner": "", "level": "remeeting"}, "pairs": "all",
         "expect": {"min": 0}},
    ]}  # fmt: skip
    model = regbnify(Nest(), rules, inputs)
    found = summary(model, inputs)
    assert len(found.rows) == 3
    assert {host.path for host in found.hosts} == {"", "inner", "beside"}
    whole = {host.path: host for host in found.hosts}
    shared = 4 * 8
    two = sum(p.numel() for p in Two().parameters())
    assert sorted(whole[path].parameters for path in ("inner", "beside")) == [two - shared, two]
    assert whole[""].parameters == sum(p.numel() for m in (model.z, model.rest) for p in m.parameters())
    parts = (*found.hosts, *found.rows)
    assert sum(part.parameters for part in parts) == found.parameters == sum(p.numel() for p in model.parameters())
    assert sum(part.buffer_elements for part in parts) == found.buffer_elements
    assert sum(part.state_bytes for part in parts) == found.state_bytes
    lines = str(found).splitlines()
    for host in ("inner", "beside", "(root)"):
        assert sum(line.startswith(host) for line in lines) == 1, "what is the host's own stands in one row"
    rows = [line for line in lines if line.startswith("  regbn_")]
    assert len(rows) == 3
    assert all(f" {found.rows[0].buffer_elements:,} " in row for row in rows[:1])
    last = next(line for line in reversed(lines) if line.startswith("total"))
    assert last.split()[1:3] == [f"{found.parameters:,}", f"{found.buffer_elements:,}"]
    assert "the rest of the model" not in str(found)
    assert "the rest of the model" in str(summary(rewritten()))
    content = found.to_dict()
    assert [host["path"] for host in content["hosts"]] == [host.path for host in found.hosts]


def test_a_model_without_regbn() -> None:
    with pytest.raises(RewriteError, match="nothing to summarise"):
        summary(Two())


@pytest.mark.parametrize(("size", "text"), [(812, "812 B"), (37376, "36.5 KiB"), (5 * 2**30, "5 GiB")])
def test_sizes(size: int, text: str) -> None:
    assert bytes_text(size) == text


def test_shares_of_nothing() -> None:
    assert Summary("M", 0, 0, (), 0.0).memory_share == 0.0
    assert Summary("M", 0, 0, (), 0.0).time_share == 0.0


def clock(monkeypatch: pytest.MonkeyPatch, slow: set[int]) -> None:
    """Every reading of the clock is a millisecond after the last; in the calls `slow` one takes 5 s longer, as if
    another program had the processor. A call reads four times: twice around the model, twice around its one RegBN."""
    readings = itertools.count()

    def now(device: torch.device) -> float:
        number = next(readings)
        late = sum(5.0 for call in slow if number > 4 * call + (1 if call % 2 else 0))
        return number * 1e-3 + late

    monkeypatch.setattr(_summary, "_now", now)


def test_a_few_calls_that_were_interrupted_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model = rewritten()
    clock(monkeypatch, set())
    quiet = summary(model, example())
    assert quiet.seconds == pytest.approx(3e-3)
    assert quiet.time_share == pytest.approx(1 / 3)
    assert quiet.time_spread == pytest.approx(0.0, abs=1e-9)
    clock(monkeypatch, {0, 3, 8})
    busy = summary(model, example())
    assert busy.seconds == pytest.approx(3e-3)
    assert busy.time_share == pytest.approx(1 / 3)
    assert busy.to_dict()["time_spread"] == busy.time_spread


def test_processor_time_is_measured_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> float:
        raise AssertionError("what other programs do changes this clock")

    monkeypatch.setattr(time, "perf_counter", refused)
    assert _summary._now(torch.device("cpu")) <= _summary._now(torch.device("cpu"))


@pytest.mark.parametrize(
    ("spread", "says"), [(0.012, "25.0% ± 1.2%"), (0.3, "< noise"), (0.25, "< noise"), (None, "25.0%")]
)
def test_a_share_below_its_noise_is_not_given(spread: float | None, says: str) -> None:
    row = RegBNSummary("late.regbn_x", "late", "Late", 1, 1, 1, 4, 0.01, spread)
    text = str(Summary("M", 2, 8, (row,), 0.04, False, 9, (HostSummary("late", "Late", 1, 0, 4),), 1, spread))
    assert f"({says})" in text
    assert f"{says} of the time of a call" in " ".join(text.split())
    assert ("25.0%" in text) == (says != "< noise")


def test_with_few_calls_nothing_is_said_of_noise() -> None:
    found = summary(rewritten(), example(), calls=2)
    assert found.time_spread is None
    assert "±" not in str(found)
