"""The projection kept as factors: the same numbers as dense while the rank suffices, the best cut after."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from regbn_surgery import RegBN, RegBNOptionError
from regbn_surgery.nn._low_rank import LowRankUpdate


def batches(steps: int, b: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    make = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    return [(make(b, 6, 2, 2), make(b, 5, 3)) for _ in range(steps)]


def pair(**options: object) -> tuple[RegBN, RegBN]:
    dense = RegBN(6, 5, [2, 2], [3], **options)
    return dense, RegBN(6, 5, [2, 2], [3], projection="low_rank", rank=12, **options)


@pytest.mark.parametrize("constraint", ["smoother", "frobenius"])
def test_exact_while_the_rank_suffices(constraint: str) -> None:
    """Three batches of 4 fit in rank 12. beta1 = beta2 = 0 makes the share the same for both measures of change."""
    dense, low = pair(constraint=constraint, beta1=0.0, beta2=0.0, momentum=0.3, normalize_input=True)
    for f, g in batches(3):
        for ours, theirs in zip(low(f, g), dense(f, g), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert dense.W.norm() > 1e-3
    torch.testing.assert_close(low.W_left @ low.W_right, dense.W, atol=1e-6, rtol=1e-4)
    f, g = batches(1)[0]
    torch.testing.assert_close(low.eval()(f, g), dense.eval()(f, g))


def test_change_is_the_frobenius_norm() -> None:
    generator = torch.Generator().manual_seed(1)
    left, right, rows, columns = (torch.randn(*size, generator=generator) for size in ((9, 3), (3, 7), (4, 9), (4, 7)))
    change = LowRankUpdate(left, right, rows, columns).change()
    want = (left @ right - rows.T @ columns).norm() / 63**0.5
    torch.testing.assert_close(float(change), float(want))


def test_the_cut_is_the_best_one() -> None:
    """By Eckart and Young the error is that of the singular values left out."""
    generator = torch.Generator().manual_seed(2)
    left, right, rows, columns = (torch.randn(*size, generator=generator) for size in ((9, 3), (3, 8), (4, 9), (4, 8)))
    whole = 0.7 * left @ right + 0.3 * rows.T @ columns
    update = LowRankUpdate(left, right, rows, columns)
    update.change()
    update.move(0.3)
    error = (left @ right - whole).norm()
    torch.testing.assert_close(error, torch.linalg.svdvals(whole)[3:].norm(), rtol=1e-4, atol=1e-5)


def test_duplicated_and_constant_rows_keep_the_factors_finite() -> None:
    _, low = pair(normalize_input=True)
    f, g = batches(1)[0]
    low(f[:1].expand(4, -1, -1, -1), g[:1].expand(4, -1, -1))
    low(torch.zeros_like(f), torch.zeros_like(g))
    low(f, g)
    assert torch.isfinite(low.W_left).all()
    assert torch.isfinite(low.W_right).all()
    assert int(low.num_skipped) == 1  # the batch in which nothing is there


def test_auto_and_refusal() -> None:
    assert RegBN(8, 8, projection="auto").projection == "dense"
    large = {"max_dense_gib": 1e-6}
    assert RegBN(64, 64, projection="auto", **large).projection == "low_rank"
    with pytest.raises(RegBNOptionError, match=r"W \[64, 64\] whole, 1.53e-05 GiB.*low_rank.*reduce='mean'"):
        RegBN(64, 64, **large)
    sizes = {"f_layer_dim": [56, 56], "g_layer_dim": [56, 56]}
    with pytest.raises(RegBNOptionError, match="150 GiB"):
        RegBN(64, 64, **sizes)


def test_state_names() -> None:
    _, low = pair()
    assert {"W_left", "W_right", "change_mean", "change_square", "num_steps", "num_skipped"} == set(low.state_dict())


def test_a_large_feature_map_trains_in_little_memory() -> None:
    """What a dense W would need 9.6 GiB for, at a size that a test can afford."""
    low = RegBN(64, 64, [28, 28], [28, 28], projection="low_rank", rank=8)
    f, g = torch.randn(4, 64, 28, 28, requires_grad=True), torch.randn(4, 64, 28, 28)
    low(f, g)[0].sum().backward()
    assert sum(buffer.numel() for buffer in low.buffers()) < 17 * 64 * 28 * 28
    assert torch.isfinite(f.grad).all()


LARGE = """
import resource, torch
from regbn_surgery import RegBN
torch.set_num_threads(1)
layer = RegBN(64, 64, [56, 56], [56, 56], projection="low_rank", rank=64, normalize_input=True, affine=True)
for _ in range(3):
    f, g = (torch.randn(16, 64, 56, 56, requires_grad=True) for _ in range(2))
    f_out, g_out = layer(f, g)
    (f_out.square().sum() + g_out.square().sum()).backward()
    assert torch.isfinite(f.grad).all() and torch.isfinite(g.grad).all()
assert int(layer.num_steps) == 3 and bool(layer.W_left.any())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_feature_maps_of_150_gib_train_in_2_gb() -> None:
    """The whole process, torch included, with every norm: a dense W would be 150 GiB. About a second per step."""
    pytest.importorskip("resource", reason="the peak of a process is read with `resource`")
    run = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=False, timeout=1800)
    assert run.returncode == 0, run.stderr[-3000:]
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    assert int(run.stdout) * unit < 2e9
