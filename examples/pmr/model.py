"""The two-branch classifier of the experiment, as anybody would write it: nothing in it is made for the surgery.

Look at it with the command line tool: `inspect examples/pmr/model.py:factory`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LATENT = 96
CLASSES = 10


def conv_block(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


class Branch(nn.Sequential):
    """[B, in_channels, 28, 28] -> [B, 96]: four convolutions and the mean over positions."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(
            *conv_block(in_channels, LATENT // 4, stride=2),  # 14 x 14
            *conv_block(LATENT // 4, LATENT // 2, stride=2),  # 7 x 7
            *conv_block(LATENT // 2, LATENT, stride=2),  # 4 x 4
            *conv_block(LATENT, LATENT, stride=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


class SplitHead(nn.Module):
    """A linear head on two concatenated latents that also says what each half contributes.

    [B, 2 * 96] -> three times [B, 10]: the joint logits, and those of the first and of the second half of the
    weights (each with half of the bias), so that first + second = joint.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * LATENT, CLASSES)

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second = fused.chunk(2, dim=1)
        weight_first, weight_second = self.linear.weight.chunk(2, dim=1)
        half_bias = self.linear.bias / 2
        first_logits = F.linear(first, weight_first, half_bias)
        second_logits = F.linear(second, weight_second, half_bias)
        return self.linear(fused), first_logits, second_logits


class TwoBranchClassifier(nn.Module):
    """gray [B, 1, 28, 28] and colored [B, 3, 28, 28] -> logits [B, 10]: joint, gray's and colored's share."""

    def __init__(self) -> None:
        super().__init__()
        self.gray_branch = Branch(1)
        self.colored_branch = Branch(3)
        self.head = SplitHead()

    def forward(self, gray: Tensor, colored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fused = torch.cat((self.gray_branch(gray), self.colored_branch(colored)), dim=1)
        joint, gray_logits, colored_logits = self.head(fused)
        return joint, gray_logits, colored_logits


def factory() -> tuple[TwoBranchClassifier, tuple[Tensor, Tensor]]:
    """A new classifier with inputs to try it on."""
    generator = torch.Generator().manual_seed(0)
    gray = torch.rand(4, 1, 28, 28, generator=generator)
    colored = torch.rand(4, 3, 28, 28, generator=generator)
    return TwoBranchClassifier(), (gray, colored)
