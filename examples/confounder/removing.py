"""The compared ways of cleaning f by g, as preprocessing: fitted on training rows, applied to both."""

from __future__ import annotations

from collections.abc import Callable

import torch
from measuring import head, left_in
from torch import Tensor, nn
from world import WIDTH, World

from regbn_surgery import RegBN
from regbn_surgery.nn import NormsOnly

#: RegBN's ways, by the options they differ in.
REGBN = {
    "RegBN smoother": {"constraint": "smoother"},
    "RegBN frobenius": {"constraint": "frobenius"},
    "RegBN fixed 0.1": {"constraint": "fixed", "lam": 0.1},
    "RegBN gcv": {"constraint": "gcv"},
    "RegBN fixed 0.001, centred": {"constraint": "fixed", "lam": 0.001, "centre": True},
}
METHODS = ("nothing", "norms only", *REGBN, "regress out", "regress out, label kept", "truth")
#: The method that differences are taken to: the norms of RegBN without its projection.
CONTROL = "norms only"
MOMENTUM = 0.1
BATCH = 64
EPOCHS = 4

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def preprocessed(method: str, world: World) -> dict[str, float]:
    """All measures of one method: features are cleaned first, linear heads are fitted afterwards."""
    f, g, f_test, g_test = cleaned(method, world)
    label, label_test = world.train.label, world.test.label
    return {
        "f alone": head(f, label, f_test, label_test),
        "fused": head(torch.cat((f, g), 1), label, torch.cat((f_test, g_test), 1), label_test),
        **left_in(f_test, world.test.g, world),
    }


def cleaned(method: str, world: World) -> Four:
    """f' and g' of the training rows, then of the test rows."""
    train, test = world.train, world.test
    if method == "nothing":
        return train.f, train.g, test.f, test.g
    if method == "truth":
        return train.f_true, train.g, test.f_true, test.g
    if method == "norms only":
        return _trained(NormsOnly(WIDTH, WIDTH), world)
    if method in REGBN:
        return _trained(RegBN(WIDTH, WIDTH, momentum=MOMENTUM, **REGBN[method]), world)
    kept = train.label[:, None].float() if method == "regress out, label kept" else torch.zeros(len(train.f), 0)
    W = least_squares(train.f, train.g, kept)
    return train.f - train.g @ W, train.g, test.f - test.g @ W, test.g


def least_squares(f: Tensor, g: Tensor, kept: Tensor) -> Tensor:
    """W [m, n] of the least-squares fit of f on g, on an intercept, and on `kept` [N, k], whose part stays in f."""
    regressors = torch.cat((g, kept, torch.ones(len(g), 1, device=g.device)), 1)
    return torch.linalg.lstsq(regressors, f).solution[: g.shape[1]]


def _trained(module: nn.Module, world: World) -> Four:
    """A module that takes f and g, trained by forwards on batches in order, then in evaluation mode."""
    run: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = module
    with torch.no_grad():
        for _ in range(EPOCHS):
            for f, g in zip(world.train.f.split(BATCH), world.train.g.split(BATCH), strict=True):
                run(f, g)
        module.eval()
        return *run(world.train.f, world.train.g), *run(world.test.f, world.test.g)
