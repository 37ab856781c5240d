"""The norms against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regbn_surgery.nn._norms import ChannelNorm, PositionNorm, SampleNorm, input_norm, output_norm


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("axes", "theirs"), [(2, nn.BatchNorm2d), (3, nn.BatchNorm3d)])
def test_channel_norm_is_batch_norm(axes: int, theirs: type[nn.Module], affine: bool) -> None:
    """Outputs, running statistics and names, over steps and in evaluation."""
    torch.manual_seed(0)
    ours, reference = ChannelNorm(3, affine=affine), theirs(3, affine=affine)
    if affine:
        nn.init.normal_(reference.weight)
        nn.init.normal_(reference.bias)
    ours.load_state_dict(reference.state_dict())
    for _ in range(3):
        x = 2.0 * torch.randn(4, 3, *[2] * axes) + 1.0
        y, seen = ours.normalize(x)
        torch.testing.assert_close(y, reference(x))
        ours.track(seen, torch.tensor(True))
    torch.testing.assert_close(ours.state_dict(), reference.state_dict())
    torch.testing.assert_close(ours.eval()(x), reference.eval()(x))
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    ours.track(ours.train().normalize(x * float("nan"))[1], torch.tensor(False))
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)


def test_position_norm_is_layer_norm_at_each_position() -> None:
    x = torch.randn(4, 3, 2, 5)
    ours = PositionNorm(3)
    nn.init.normal_(ours.weight)
    for b in range(4):
        for i in range(2):
            for j in range(5):
                want = nn.functional.layer_norm(x[b, :, i, j], (3,), ours.weight, ours.bias)
                torch.testing.assert_close(ours(x)[b, :, i, j], want)


def test_which_norm_goes_where() -> None:
    assert isinstance(input_norm(3, (), True), SampleNorm)
    assert isinstance(input_norm(3, (4,), True), SampleNorm)
    assert all(isinstance(input_norm(3, (2,) * axes, False), ChannelNorm) for axes in (2, 3, 4))
    assert input_norm(3, (2, 2), False).weight is None
    assert output_norm(3, (2, 2), True, by_position=False).weight.shape == (3, 2, 2)
    assert output_norm(3, (), True, by_position=True).weight.shape == (3,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [SampleNorm(3), PositionNorm(3)])
def test_half_inputs(norm: nn.Module, dtype: torch.dtype) -> None:
    x = torch.randn(4, 3)
    torch.testing.assert_close(norm(x.to(dtype)), norm(x).to(dtype), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("norm", [SampleNorm(3), PositionNorm(3)])
def test_half_weights_do_not_lower_the_precision(norm: nn.Module) -> None:
    x = torch.randn(4, 3)
    want = norm(x)
    torch.testing.assert_close(norm.half()(x), want)
