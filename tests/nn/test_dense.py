"""The tiled update of a dense W, with a workspace small enough that every way of tiling occurs."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regbn_surgery import RegBN
from regbn_surgery.nn import _dense
from regbn_surgery.nn._dense import DenseUpdate, PrimalUpdate


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(1, 30)),
    workspace=st.sampled_from([1, 7, 64, 300, 10**6]),
    columns=st.sampled_from([4, 16, 10**6]),
    share=st.floats(0.0, 1.0),
    on_host=st.booleans(),
)
def test_any_tiling_gives_the_plain_result(
    sizes: tuple[int, int, int], workspace: int, columns: int, share: float, on_host: bool
) -> None:
    b, m, n = sizes
    generator = torch.Generator().manual_seed(b * 10000 + m * 100 + n)
    W, left, right = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((m, n), (b, m), (b, n)))
    target = left.T @ right
    before = W.clone()
    tiling = {"WORKSPACE": {"cpu": workspace}, "TILE_COLUMNS": columns, "SUMMED_AT_ONCE": 13}
    with mock.patch.multiple(_dense, **tiling):
        update = DenseUpdate(W, left, right)
        change = update.change()
        assert torch.equal(W, before)
        update.move(share if on_host else torch.tensor(share, dtype=torch.float64))
    torch.testing.assert_close(change, (target - before).abs().mean())
    torch.testing.assert_close(W, (1 - share) * before + share * target)


@pytest.mark.parametrize("workspace", [20, 10**6])
def test_what_is_not_finite_does_not_reach_w(workspace: int) -> None:
    W, left, right = torch.randn(9, 6), torch.full((3, 9), float("nan")), torch.full((3, 6), float("inf"))
    before = W.clone()
    with mock.patch.object(_dense, "WORKSPACE", {"cpu": workspace}):
        update = DenseUpdate(W, left, right)
        skipped = ~torch.isfinite(update.change())
        assert skipped
        update.neutralise_if(skipped)
        update.move(torch.tensor(0.0))
    assert torch.equal(W, before)
    primal = PrimalUpdate(W, torch.full((9, 6), float("nan")))
    primal.neutralise_if(~torch.isfinite(primal.change()))
    primal.move(torch.tensor(0.0))
    assert torch.equal(W, before)


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_rms_size_of_the_change(form: str) -> None:
    """The size is the root mean square of W - W_batch, the step that follows is by the share that it gives."""
    torch.manual_seed(0)
    module = RegBN(4, 30, form=form, step_size="rms").double()
    for _ in range(3):
        f, g = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 30, dtype=torch.float64)
        before, mean = module.W.clone(), float(module.change_mean)
        module(f, g)
        W_batch = torch.linalg.solve(g.T @ g + module.multiplier * torch.eye(30), g.T @ f)
        want = float((before - W_batch).square().mean().sqrt())
        assert (float(module.change_mean) - 0.9 * mean) / 0.1 == pytest.approx(want, rel=1e-6)
        share = float(module.observed[0])
        torch.testing.assert_close(module.W, (1 - share) * before + share * W_batch, atol=1e-7, rtol=1e-6)
