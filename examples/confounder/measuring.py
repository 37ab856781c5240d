"""What is measured of cleaned features: linear heads for the label, a probe for the confounder, and held-out R2."""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from world import World

#: A measure, and what it says.
MEASURES = {
    "f alone": "test accuracy of the label from f'",
    "fused": "test accuracy of the label from f' and g' together",
    "confounder": "accuracy of a linear probe for the confounder on f' (0.5: nothing is left)",
    "R2": "held-out R2 of f' on g (0: nothing linear is left)",
}


def head(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Accuracy of logistic regression (L2, C = 1)."""
    return float(LogisticRegression(max_iter=1000).fit(x.numpy(), y.numpy()).score(x_test.numpy(), y_test.numpy()))


def left_in(f: Tensor, g: Tensor, world: World) -> dict[str, float]:
    """What test features f' [N, 32] still say of the confounder and of g: fitted on one half, measured on the other.

    On test rows the confounder says nothing of the label, so that the probe reads the confounder alone.
    """
    half, confounder = len(f) // 2, world.test.confounder
    return {
        "confounder": head(f[:half], confounder[:half], f[half:], confounder[half:]),
        "R2": held_out_r2(f, g),
    }


def held_out_r2(f: Tensor, g: Tensor) -> float:
    """R2 of f on g, fitted with an intercept on one half of the rows and measured on the other."""
    half = len(f) // 2
    f, g = f.double(), torch.cat((g, torch.ones(len(g), 1)), 1).double()
    W = torch.linalg.lstsq(g[:half], f[:half]).solution
    rest = f[half:] - g[half:] @ W
    return 1.0 - float(rest.square().sum() / (f[half:] - f[half:].mean(0)).square().sum())
