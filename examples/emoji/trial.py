"""One run: train a network on one vendor's drawings, and measure it on held-out emoji of two vendors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from branches import WIDTH
from emoji_set import EmojiSet
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from regbn_surgery._diagnosis import explained_variance

LEARNING_RATE = 2e-3
BATCH = 64

#: What is measured, on emoji that were held out.
MEASURES = {
    "fused": "accuracy of the network",
    "fused, other vendor": "the same, on the other vendor's drawings",
    "picture features": "accuracy of a linear probe on what the head gets from the picture's side",
    "picture features, other vendor": "the same, on the other vendor's drawings",
    "name features": "accuracy of a linear probe on what the head gets from the name's side",
    "picture missing": "accuracy of the network where no picture is given",
    "name missing": "accuracy of the network where no name is given",
    "R2 picture before": "how well name features predict picture features (R2), as the branches give them",
    "R2 picture after": "the same, as the head gets them",
    "R2 name before": "how well picture features predict name features",
    "R2 name after": "the same, as the head gets them",
}


@dataclass(frozen=True)
class Trial:
    """Train and measure one network: what `regbn_surgery.sweep` calls for each variant and seed."""

    emoji: EmojiSet
    vendor: str
    other: str
    epochs: int

    def __call__(self, model: nn.Module, seed: int) -> dict[str, float]:
        """Train `model` in place, and return `MEASURES`. torch's generator decides the order of the emoji."""
        train, test = self.emoji.split(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        model.train()
        for _ in range(self.epochs):
            order = train[torch.randperm(len(train))]
            for rows in order[: len(order) - len(order) % BATCH].split(BATCH):
                loss = F.cross_entropy(model(*self._inputs(rows, self.vendor)), self.emoji.labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return self._measured(model.eval(), train, test)

    def _inputs(self, rows: Tensor, vendor: str) -> tuple[Tensor, Tensor]:
        return self.emoji.drawings[vendor][rows], self.emoji.hashed_names[rows]

    @torch.no_grad()
    def _measured(self, model: nn.Module, train: Tensor, test: Tensor) -> dict[str, float]:
        labels = self.emoji.labels
        picture, name = self._inputs(test, self.vendor)
        here, there = Seen.of(model, picture, name), Seen.of(model, *self._inputs(test, self.other))
        known = Seen.of(model, *self._inputs(train, self.vendor))

        def right(logits: Tensor) -> float:
            return float((logits.argmax(1) == labels[test]).float().mean())

        probes = {side: linear_probe(getattr(known, side), labels[train]) for side in ("picture", "name")}

        def probed(side: str, seen: Seen) -> float:
            return float(probes[side].score(getattr(seen, side).numpy(), labels[test].numpy()))

        def r2(f: Tensor, g: Tensor) -> float:
            return explained_variance(f.double(), g.double())

        return {
            "fused": right(here.logits),
            "fused, other vendor": right(there.logits),
            "picture features": probed("picture", here),
            "picture features, other vendor": probed("picture", there),
            "name features": probed("name", here),
            "picture missing": right(model(torch.zeros_like(picture), name)),
            "name missing": right(model(picture, torch.zeros_like(name))),
            "R2 picture before": r2(here.picture_before, here.name_before),
            "R2 picture after": r2(here.picture, here.name_before),
            "R2 name before": r2(here.name_before, here.picture_before),
            "R2 name after": r2(here.name, here.picture_before),
        }


def linear_probe(features: Tensor, labels: Tensor) -> Pipeline:
    """Logistic regression (L2, C = 1) on standardised features [N, 32]."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return probe.fit(features.numpy(), labels.numpy())


@dataclass(frozen=True)
class Seen:
    """What passes through the network in one call: logits, and each branch's features [N, 32] before and after RegBN.

    `before`: as the branch gives them; the others: as the head gets them.
    """

    logits: Tensor
    picture_before: Tensor
    name_before: Tensor
    picture: Tensor
    name: Tensor

    @classmethod
    def of(cls, model: nn.Module, picture: Tensor, name: Tensor) -> Seen:
        kept: dict[str, Tensor] = {}

        def branch(name: str) -> Callable[[nn.Module, object, Tensor], None]:
            return lambda module, given, made: kept.update({name: made})

        handles = [
            model.picture_net.register_forward_hook(branch("picture")),
            model.name_net.register_forward_hook(branch("name")),
            model.head.register_forward_pre_hook(lambda module, given: kept.update(head=given[0])),
        ]
        try:
            logits = model(picture, name)
        finally:
            for handle in handles:
                handle.remove()
        return cls(logits, kept["picture"], kept["name"], *kept["head"].split(WIDTH, dim=1))
