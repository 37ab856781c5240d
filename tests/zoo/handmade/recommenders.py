"""Recommenders that know what an item looks like and what is written about it."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, flat, point, pooled, side


class VBPR(nn.Module):
    """Visual and textual Bayesian personalised ranking (He and McAuley, 2016, with a term for text)."""

    def __init__(self, users: int = 20, items: int = 30) -> None:
        super().__init__()
        self.gamma_users, self.gamma_items = nn.Embedding(users, 8), nn.Embedding(items, 8)
        self.theta_users, self.phi_users = nn.Embedding(users, 6), nn.Embedding(users, 5)
        self.beta_items = nn.Embedding(items, 1)
        self.embedding = nn.Parameter(torch.randn(12, 6) * 0.2)
        self.visual_bias = nn.Parameter(torch.randn(12, 1) * 0.2)
        self.text_projection = nn.Linear(10, 5, bias=False)

    def forward(self, user: torch.Tensor, item: torch.Tensor, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        score = self.beta_items(item).squeeze(1)
        score = score + (self.gamma_users(user) * self.gamma_items(item)).sum(dim=1)
        score = score + (self.theta_users(user) * image.mm(self.embedding)).sum(dim=1)
        score = score + image.mm(self.visual_bias).squeeze(1)
        return score + (self.phi_users(user) * self.text_projection(text)).sum(dim=1)


class ItemEncoder(nn.Module):
    """An item from its id, its picture and its text, each weighed by what it is itself."""

    def __init__(self, dim: int, fusion: str) -> None:
        super().__init__()
        self.fusion = fusion
        self.id_embedding = nn.Embedding(30, dim, padding_idx=0)
        self.adapters = nn.ModuleDict(
            OrderedDict(image=nn.Linear(12, dim), text=nn.Sequential(nn.Linear(10, 9), nn.GELU(), nn.Linear(9, dim)))
        )
        self.score = nn.Linear(dim, 1)

    def forward(self, item: dict[str, torch.Tensor]) -> torch.Tensor:
        views = [self.id_embedding(item["ids"])]
        views += [adapter(item[name]) for name, adapter in self.adapters.items()]
        if self.fusion == "sum":
            return sum(views[1:], views[0])
        stacked = torch.stack(views, dim=-2)
        weights = F.softmax(self.score(torch.tanh(stacked)), dim=-2)
        return (weights * stacked).sum(dim=-2)


class MultimodalSequence(nn.Module):
    """A session of items is read by a recurrent network, and each candidate is compared with what comes next."""

    def __init__(self, dim: int = 8, fusion: str = "attention") -> None:
        super().__init__()
        self.item_encoder = ItemEncoder(dim, fusion)
        self.user_encoder = nn.GRU(dim, dim, batch_first=True)
        self.dropout = nn.Dropout(0.1)

    def forward(self, history: dict[str, torch.Tensor], candidates: dict[str, torch.Tensor]) -> torch.Tensor:
        session = self.user_encoder(self.dropout(self.item_encoder(history)))[0][:, -1]
        return torch.einsum("bd,bkd->bk", session, self.item_encoder(candidates))


class BipartiteConvolution(nn.Module):
    """Messages between users and items over their interactions, for the features of one modality."""

    def __init__(self, in_features: int, features: int, id_features: int) -> None:
        super().__init__()
        self.preference = nn.Parameter(torch.randn(4, features) * 0.3)
        self.mlp, self.conv = nn.Linear(in_features, features), nn.Linear(features, features, bias=False)
        self.linear, self.gate = nn.Linear(features, id_features), nn.Linear(features, id_features)

    def forward(self, items: torch.Tensor, id_embedding: torch.Tensor, adjacency_mask: torch.Tensor) -> torch.Tensor:
        """`items` is `[B, N, C]`; the result has a row for each of 4 users and N items."""
        x = torch.tanh(self.mlp(items))
        x = torch.cat((self.preference.expand(len(x), -1, -1), x), dim=1)
        x = F.normalize(x, dim=-1)
        h = F.leaky_relu(torch.matmul(adjacency_mask, self.conv(x)))
        x_hat = F.leaky_relu(self.linear(x)) + id_embedding
        return F.leaky_relu(self.gate(h) + x_hat)


class MMGCN(nn.Module):
    """A graph of users and items for each modality (Wei et al., 2019), with shared ids; the results are averaged."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.convolutions = nn.ModuleDict(
            {name: BipartiteConvolution(size, 8, dim) for name, size in (("v", 12), ("a", 9), ("t", 10))}
        )
        self.id_embedding = nn.Parameter(torch.randn(4 + 5, dim) * 0.3)

    def forward(
        self, v_feat: torch.Tensor, a_feat: torch.Tensor, t_feat: torch.Tensor, adjacency_mask: torch.Tensor
    ) -> torch.Tensor:
        features = {"v": v_feat, "a": a_feat, "t": t_feat}
        representation = None
        for name, convolution in self.convolutions.items():
            found = convolution(features[name], self.id_embedding, adjacency_mask)
            representation = found if representation is None else representation + found
        representation = representation / len(features)
        users, items = representation[:, :4], representation[:, 4:]
        return torch.matmul(users, items.transpose(1, 2))


def session(batch: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 30, (batch, length))
    return {"ids": ids, "image": torch.randn(batch, length, 12), "text": torch.randn(batch, length, 10)}


def catalogue(batch: int) -> tuple[torch.Tensor, ...]:
    bought = (torch.arange(9)[:, None] + torch.arange(9)[None]) % 3 == 0
    features = (torch.randn(batch, 5, size) for size in (12, 9, 10))
    return (*features, (bought / bought.sum(1, keepdim=True)).repeat(batch, 1, 1))


EVERY_PAIR = {"id": "all", "pairs": "all"}
SCORES = {"level": None, "selected": False, "sites_known": False}

CASES = (
    ZooCase(
        name="vbpr",
        build=VBPR,
        inputs=lambda batch: (
            torch.randint(0, 20, (batch,)),
            torch.randint(0, 30, (batch,)),
            torch.randn(batch, 12),
            torch.randn(batch, 10),
        ),
        modalities={"user": ["user"], "item": ["item"], "image": ["image"], "text": ["text"]},
        # Three inner products; then terms of a score are added up, one number for each sample: no place for RegBN.
        points=(
            point("", "product", flat(side("user", 8), side("item", 8)), level="middle"),
            point("", "product", flat(side("user", 6), side("image", 6)), level="middle"),
            point("", "product", flat(side("user", 5), side("text", 5)), level="middle"),
            point("", "sum", meets=("item", "user+item"), **SCORES),
            point("", "sum", meets=("user+item", "user+image"), **SCORES),
            point("", "sum", meets=("user+item+image", "image"), **SCORES),
            point("", "sum", meets=("user+item+image", "user+text"), **SCORES),
        ),
        rules=({**EVERY_PAIR, "match": {"kind": "product"}},),
        normalize="user",
    ),
    ZooCase(
        name="multimodal_sequence",
        build=MultimodalSequence,
        inputs=lambda batch: {"history": session(batch, 5), "candidates": session(batch, 3)},
        modalities={
            "ids": ["history.ids", "candidates.ids"],
            "image": ["history.image", "candidates.image"],
            "text": ["history.text", "candidates.text"],
        },
        # One encoder for what was bought and for what may be. Session and candidates are each all three; what compares
        # them makes scores, and no stream in which they are joined anew.
        points=(
            point(
                "item_encoder",
                "concat",
                pooled(side("ids", 8), side("image", 8)),
                pooled(side("ids", 8), side("text", 8)),
                pooled(side("image", 8), side("text", 8)),
            ),
        ),
        rules=({**EVERY_PAIR, "match": {"kind": "concat"}},),
        normalize="ids",
    ),
    ZooCase(
        name="mmgcn",
        build=MMGCN,
        inputs=catalogue,
        modalities={"image": ["v_feat"], "sound": ["a_feat"], "text": ["t_feat"]},
        # Shared ids are parameters and belong to nobody. What is bought is of kind graph, no content. The scores in
        # the end compare rows of one stream with each other.
        points=(
            point("", "sum", pooled(side("image", 6), side("sound", 6)), level="middle"),
            point("", "sum", pooled(side("image+sound", 6), side("text", 6))),
        ),
        rules=({**EVERY_PAIR, "match": {"kind": "sum"}},),
        normalize="image",
    ),
)
