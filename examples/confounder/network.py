"""The same comparison in a small network, trained end to end: `regbnify` puts each method before the concatenation."""

from __future__ import annotations

import torch
from measuring import left_in
from removing import BATCH, MOMENTUM, REGBN, least_squares
from torch import Tensor, nn
from torch.nn import functional as F
from world import WIDTH, World

from regbn_surgery import regbnify
from regbn_surgery.nn import NormsOnly, RegressOut

HIDDEN = 32


class TwoBranches(nn.Module):
    """f, g [B, 32] -> logits [B, 2] of both branches together, and of the branch of f alone."""

    def __init__(self) -> None:
        super().__init__()
        self.f_net = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, HIDDEN))
        self.g_net = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, HIDDEN))
        self.head = nn.Linear(2 * HIDDEN, 2)
        self.f_head = nn.Linear(HIDDEN, 2)

    def forward(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat((self.f_net(f), self.g_net(g)), dim=1)
        return self.head(both), self.f_head(both[:, :HIDDEN])


class LabelKept(nn.Module):
    """Least squares of f on g and the label, of which only g's part is subtracted, as metadata normalisation does.

    Training sets `label` [B] before each forward; evaluation subtracts with the running W and needs no label.
    """

    def __init__(self, f_width: int, g_width: int) -> None:
        super().__init__()
        self.register_buffer("W", torch.zeros(g_width, f_width))
        self.label: Tensor | None = None

    def forward(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        W = self.W
        if self.training and self.label is not None and len(self.label) == len(f):
            W = least_squares(f, g, self.label[:, None].float())
            self.W.lerp_(W.detach(), MOMENTUM)
        return f - g @ W, g


def build(method: str, seed: int) -> nn.Module:
    """A new network with the method in it. Equal seeds give all methods equal initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, example = TwoBranches(), (torch.randn(8, WIDTH), torch.randn(8, WIDTH))
        if method in ("nothing", "truth"):
            return model
        makers = {
            "norms only": NormsOnly.at,
            "regress out": RegressOut.at,
            "regress out, label kept": lambda site: LabelKept(site.f.channels, site.g.channels),
        }
        options = {"momentum": MOMENTUM, **REGBN.get(method, {})}
        late = {"id": "late", "match": {"kind": "concat"}, "normalize": "f", "against": "g", "regbn": options}
        return regbnify(model, {"version": 1, "rules": [late]}, example, make=makers.get(method))


def end_to_end(method: str, world: World, seed: int, epochs: int) -> dict[str, float]:
    """Train a network with `method` in it on both heads, and measure it on the test rows."""
    model = build(method, seed)
    f = world.train.f_true if method == "truth" else world.train.f
    keepers = [module for module in model.modules() if isinstance(module, LabelKept)]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(f), generator=order).split(BATCH):
            label = world.train.label[index]
            for keeper in keepers:
                keeper.label = label
            loss = sum(F.cross_entropy(logits, label) for logits in model(f[index], world.train.g[index]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return _measured(model.eval(), method, world)


@torch.no_grad()
def _measured(model: nn.Module, method: str, world: World) -> dict[str, float]:
    seen: list[Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    f = world.test.f_true if method == "truth" else world.test.f
    fused, alone = model(f, world.test.g)
    handle.remove()
    f_cleaned, g = seen[0].split(HIDDEN, dim=1)
    accuracy = {
        name: float((logits.argmax(1) == world.test.label).float().mean())
        for name, logits in (("f alone", alone), ("fused", fused))
    }
    return {**accuracy, **left_in(f_cleaned, g, world)}
