"""Which name a misspelt one was meant to be, and that a name which is only unlike is not suggested."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import CaptureError, InputsError, PlanError
from regbn_surgery._spelling import did_you_mean, nearest


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("gary", ["gray", "colored"], "gray"),
        ("concta", ["concat", "sum"], "concat"),
        ("cta", ["cat", "sum"], "cat"),
        ("oncat", ["concat"], "concat"),
        ("batch", ["batches"], "batches"),
        ("modality", ["modalities"], "modalities"),
        ("img", ["image", "text"], "image"),
        ("attention", ["late", "cross-attention"], "cross-attention"),
        ("Colored", ["colored"], "colored"),
        ("colored", ["Colored", "colored_2"], "Colored"),
        ("report", ["batch.report", "batch.tab"], "batch.report"),
        ("reprot", ["batch.tab", "batch.report"], "batch.report"),
        ("layer.attn", ["encoder.layer.attn", "encoder.layer.mlp"], "encoder.layer.attn"),
        ("encoder.layr.attn", ["encoder.layer.attn", "encoder.layer.atom"], "encoder.layer.attn"),
        ("module:grey", ["module:gray", "input:red"], "module:gray"),
    ],
)
def test_near_misses(word: str, known: list[str], meant: str) -> None:
    assert nearest(word, known) == meant
    assert nearest(word, known[::-1]) == meant
    assert did_you_mean(word, known) == f"; did you mean `{meant}`?"


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("report", "batch.tab"),
        ("report", "text"),
        ("report", "repeat"),
        ("audio", "radio"),
        ("table", "label"),
        ("vision", "version"),
        ("batch.report", "batch.table"),  # most of it is the same, but not the name
        ("encoder.layer.0.attention", "encoder.layer.0.dropout"),
        ("image_features", "text_features"),
        ("left_hidden_states", "right_hidden_states"),
        ("ab", "abcdefgh"),
        ("", "a"),
        ("x", ""),
        (".", "a"),
    ],
)
def test_other_names_are_not_suggested(word: str, other: str) -> None:
    assert nearest(word, [other]) is None
    assert nearest(other, [word]) is None
    assert did_you_mean(word, [other]) == ""


class Looks(nn.Module):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.a, self.b, self.key = nn.Linear(3, 4), nn.Linear(2, 4), key

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.cat([self.a(batch["scan_features"]), self.b(batch[self.key])], 1)


BATCH = {"batch": {"scan_features": torch.randn(4, 3), "text_features": torch.randn(4, 2)}}


def test_a_key_that_is_not_there() -> None:
    with pytest.raises(CaptureError, match="no `text_featurs`, but `text_features`: is it misspelt"):
        regbn_surgery.inspect(Looks("text_featurs"), BATCH)
    for key in ("labs_features", "report"):
        with pytest.raises(CaptureError) as caught:
            regbn_surgery.inspect(Looks(key), BATCH)
        assert "misspelt" not in str(caught.value)


def test_an_input_of_a_modality_and_a_module_of_a_pair(tmp_path: Path) -> None:
    """Both are told by functions of the analysis."""
    model = Looks("text_features")
    with pytest.raises(InputsError, match=r"Did you mean 'batch\.text_features'"):
        regbn_surgery.inspect(model, BATCH, {"t": ["text_featurs"], "s": ["batch.scan_features"]})
    with pytest.raises(InputsError) as caught:
        regbn_surgery.inspect(model, BATCH, {"t": ["batch.labs_features"], "s": ["batch.scan_features"]})
    assert "Did you mean" not in str(caught.value)
    pair = {"f": "input:batch.labs_features", "g": "module:b"}
    with pytest.raises(PlanError) as refused:
        regbn_surgery.plan(model, {"version": 1, "rules": [{"id": "p", "pair": pair}]}, BATCH)
    assert "Did you mean" not in str(refused.value)
