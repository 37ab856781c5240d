"""RegBN of a rewritten model joins the ranks that the model's SyncBatchNorm joins, whichever comes first."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RegBN, load_regbn, save_regbn

from .models import Nested, build, operate, rules, vectors


class Normed(nn.Module):
    def __init__(self, layer: type[nn.Module] = nn.BatchNorm1d) -> None:
        super().__init__()
        self.enc_a, self.enc_b, self.head = nn.Linear(6, 8), nn.Linear(5, 8), nn.Linear(16, 3)
        self.norm = layer(16)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1)))


def options_of(model: nn.Module) -> list[tuple[bool, Any]]:
    return [(m.options.sync, m.process_group) for m in model.modules() if isinstance(m, RegBN)]


@pytest.mark.parametrize("cls", [Normed, Nested])
def test_a_rewritten_model_is_converted_as_a_whole_or_within_another(cls: type[nn.Module]) -> None:
    group = object()
    model = operate(build(cls), vectors())
    assert options_of(model) == [(False, None)]
    around = nn.ModuleDict({"a": nn.ModuleList([copy.deepcopy(model)])})
    assert options_of(nn.SyncBatchNorm.convert_sync_batchnorm(around, group)) == [(True, group)]
    assert options_of(nn.SyncBatchNorm.convert_sync_batchnorm(model)) == [(True, None)]
    model(**vectors(5))


def test_lightning_converts_it() -> None:
    layer_sync = pytest.importorskip("lightning.pytorch.plugins.layer_sync")
    model = operate(build(Normed), vectors())
    assert options_of(layer_sync.TorchSyncBatchNorm().apply(model)) == [(True, None)]


def converted() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(build(Normed))


def test_a_model_that_was_converted_before_gets_regbn_that_joins_its_ranks(tmp_path: Any) -> None:
    model = operate(converted(), vectors())
    assert options_of(model) == [(True, None)]
    save_regbn(model, tmp_path)
    assert options_of(load_regbn(converted(), tmp_path)) == [(True, None)]
    assert options_of(load_regbn(build(Normed), tmp_path)) == [(False, None)]


def test_what_the_rule_says_of_it_stands() -> None:
    assert options_of(operate(converted(), vectors(), regbn={"sync": False})) == [(False, None)]
    given = {**rules(), "defaults": {"regbn": {"sync": False}}}
    assert options_of(regbn_surgery.regbnify(converted(), given, vectors())) == [(False, None)]


def test_layers_that_join_different_ranks_say_nothing() -> None:
    model = build(Normed)
    model.other = nn.SyncBatchNorm(3, process_group=object())
    model.norm = nn.SyncBatchNorm(16)
    assert options_of(operate(model, vectors(), inplace=True)) == [(False, None)]
