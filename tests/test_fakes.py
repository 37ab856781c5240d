"""Models without weights in memory: inspected by their shapes, put back as they were, refused where values count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import regbn_surgery as rs
from regbn_surgery._fakes import is_weightless, standing_in
from tests.zoo import CASES


class Recurrent(nn.Module):
    """A recurrent layer holds its parameters twice; the tables of the two branches are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.rnn = nn.LSTM(6, 8, batch_first=True)
        self.image = nn.Linear(5, 8)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 20)
        self.decoder = nn.Linear(6, 20, bias=False)
        self.decoder.weight = self.table.weight

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        _, (last, _) = self.rnn(self.table(ids))
        return self.head(self.norm(torch.cat([self.image(image), last[-1]], 1)))


class BranchesOnValue(Recurrent):
    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        if self.image(image).mean() > 0:
            image = image * 2
        return super().forward(image, ids)


class SelectsByValue(Recurrent):
    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        ids = ids[: max(int((ids[:, 0] > 3).sum()), len(ids))]  # integers are real, so this is known
        return super().forward(image, ids)


def _example(size: int) -> rs.Inputs:
    generator = torch.Generator().manual_seed(size)
    return rs.Inputs(torch.randn(size, 5, generator=generator), torch.randint(0, 20, (size, 4), generator=generator))


def _points(model: nn.Module, example: Any) -> list[tuple[Any, ...]]:
    return [
        (point.id, point.owner, point.kind, point.level, point.operands, point.sites)
        for point in rs.inspect(model, example).fusion_points
    ]


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize("build", [Recurrent, SelectsByValue])
def test_the_same_points_as_with_weights(build: Callable[[], nn.Module]) -> None:
    points = _points(_on_meta(build), _example)
    assert points
    assert points == _points(build(), _example)


@pytest.mark.parametrize("name", ["hf_llava", "hf_clip", "hf_blip2", "hf_whisper", "hf_idefics2", "hf_lxmert"])
def test_transformers_without_weights(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    real = case.build()
    meta = case.build().to("meta")
    assert _points(meta, case.inputs) == _points(real, case.inputs)


def _interrupted(model: Recurrent) -> None:
    with standing_in(model) as fakes:
        assert fakes.mode is not None
        assert model.decoder.weight is model.table.weight
        assert not model.head.weight.is_meta
        raise KeyboardInterrupt


def test_the_model_is_put_back() -> None:
    model = _on_meta(Recurrent)
    before = {name: id(t) for name, t in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}
    flat = [id(weight) for weight in model.rnn._flat_weights]
    rs.inspect(model, _example)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(model)
    after = {name: id(t) for name, t in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}
    assert after == before
    assert [id(weight) for weight in model.rnn._flat_weights] == flat
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_model_with_weights_is_left_alone() -> None:
    model = Recurrent()
    weight = model.head.weight
    with standing_in(model) as fakes:
        assert fakes.mode is None
        assert model.head.weight is weight
    assert not is_weightless(model)


def test_a_model_made_of_fakes() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = Recurrent()
    assert [point[0] for point in _points(model, _example)] == ["cat"]


def test_inputs_without_values_either() -> None:
    def example(size: int) -> rs.Inputs:
        return rs.Inputs(torch.empty(size, 5, device="meta"), torch.empty(size, 4, dtype=torch.long, device="meta"))

    assert [point[0] for point in _points(_on_meta(Recurrent), example)] == ["cat"]


def test_a_floating_value_that_is_needed_is_named_with_the_remedy() -> None:
    with pytest.raises(rs.CaptureError, match=r"test_fakes\.py:\d+.*real weights") as caught:
        rs.inspect(_on_meta(BranchesOnValue), _example)
    assert "BranchesOnValue" in str(caught.value)
    assert [p.id for p in rs.inspect(BranchesOnValue(), _example).fusion_points] == ["cat"]


def test_regbnify_says_why_it_cannot() -> None:
    rules = {"version": 1, "rules": [{"id": "r", "match": {"kind": "concat"}, "normalize": "image"}]}
    with pytest.raises(rs.RewriteError, match=r"table\.weight.*meta device"):
        rs.regbnify(_on_meta(Recurrent), rules, _example)
    assert len(rs.plan(_on_meta(Recurrent), rules, _example).sites) == 1
