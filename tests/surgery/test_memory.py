"""What a cache keeps of g serves no longer where somebody has written to it, or to its mask."""

from __future__ import annotations

import torch

from regbn_surgery._surgery._memory import Met


def test_a_mask_that_was_written_to_tells_no_mean() -> None:
    g, mask = torch.randn(2, 3, 4), torch.ones(2, 4, dtype=torch.bool)
    kept = Met(g, mask.expand(2, -1), torch.float32)
    mask[:, 2:] = False
    assert kept.pooled() is None
    again = Met(g, mask, torch.float32).pooled()
    assert again is not None
    torch.testing.assert_close(again, g[..., :2].mean(-1))
