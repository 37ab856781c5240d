"""The note that g has taken up f before it meets it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import plan


class CrossThenConcat(nn.Module):
    """Text queries look at audio, and what comes out is joined with audio."""

    def __init__(self, attends: bool) -> None:
        super().__init__()
        self.audio, self.text = nn.Linear(5, 8), nn.Embedding(20, 8)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True) if attends else None
        self.head = nn.Linear(16, 3)

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        a, t = self.audio(audio), self.text(text)
        if self.cross is not None:
            t = t + self.cross(t, a, a)[0]
        return self.head(torch.cat([a.mean(1), t.mean(1)], dim=-1))


@pytest.mark.parametrize("attends", [True, False])
def test_a_g_that_holds_f_is_told(attends: bool) -> None:
    rules = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "audio"}]}
    example = {"audio": torch.randn(4, 6, 5), "text": torch.randint(0, 20, (4, 7))}
    notes = [note for note in plan(CrossThenConcat(attends), rules, example).notes if "RB125" in note]
    assert bool(notes) is attends
    for note in notes:
        assert "text has already taken up audio" in note
        assert "regbn_late" in note
