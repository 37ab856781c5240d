"""Patients: several kinds of omics, and records beside a volume that they modulate."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, flat, point, side


class MOLI(nn.Module):
    """Drug response from three kinds of omics (Sharifi-Noghabi et al., 2019), each encoded and put on the sphere."""

    def __init__(self, sizes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        for name, (genes, hidden) in sizes.items():
            encoder = nn.Sequential(nn.Linear(genes, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.1))
            self.add_module(f"encoder_{name}", encoder)
        self.names = list(sizes)
        self.classifier = nn.Sequential(nn.Linear(sum(h for _, h in sizes.values()), 1), nn.Dropout(0.1), nn.Sigmoid())

    def forward(self, expression: torch.Tensor, mutation: torch.Tensor, cna: torch.Tensor) -> torch.Tensor:
        of_kind = {"e": expression, "m": mutation, "c": cna}
        z = [getattr(self, f"encoder_{name}")(of_kind[name]) for name in self.names]
        z = torch.cat(z, 1)
        return self.classifier(F.normalize(z, p=2, dim=0))


@dataclass
class Integration:
    hazard: torch.Tensor
    loss: torch.Tensor
    reconstructions: dict[str, torch.Tensor] = field(default_factory=dict)


class CustOmics(nn.Module):
    """A hierarchy of autoencoders (Benkirane et al., 2023): one for each source, a variational one over all codes."""

    def __init__(self, sources: dict[str, int], rep_dim: int = 6, latent_dim: int = 4, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = beta
        self.lt_encoders = nn.ModuleDict({s: self._net(size, rep_dim) for s, size in sources.items()})
        self.lt_decoders = nn.ModuleDict({s: self._net(rep_dim, size) for s, size in sources.items()})
        self.central_encoder = nn.Linear(rep_dim * len(sources), 10)
        self.mean, self.log_var = nn.Linear(10, latent_dim), nn.Linear(10, latent_dim)
        self.central_decoder = nn.Linear(latent_dim, rep_dim * len(sources))
        self.survival_predictor = nn.Linear(latent_dim, 1)

    @staticmethod
    def _net(n_in: int, n_out: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(n_in, 8), nn.BatchNorm1d(8), nn.PReLU(), nn.Linear(8, n_out))

    def per_source_forward(self, x: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        outputs = []
        for source, encoder in self.lt_encoders.items():
            code = encoder(x[source])
            outputs.append((self.lt_decoders[source](code), code))
        return outputs

    def forward(self, x: dict[str, torch.Tensor]) -> Integration:
        outputs = self.per_source_forward(x)
        h = F.relu(self.central_encoder(torch.cat([code for _, code in outputs], dim=1)))
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean
        if self.training:
            z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
        codes = self.central_decoder(z).chunk(len(outputs), dim=1)
        kl = -0.5 * torch.mean(1 + log_var - mean.pow(2) - log_var.exp())
        rec = {source: out for source, (out, _) in zip(x, outputs, strict=True)}
        loss = self.beta * kl + F.mse_loss(torch.cat(codes, 1), torch.cat([code for _, code in outputs], 1).detach())
        return Integration(self.survival_predictor(z), loss, rec)


class HyperLinear(nn.Module):
    """A linear layer whose weight and bias are made for each sample from its record."""

    def __init__(self, in_features: int, out_features: int, record: int) -> None:
        super().__init__()
        self.shape = (out_features, in_features)
        self.hyper = nn.Sequential(nn.Linear(record, 6), nn.PReLU())
        self.weight_gen, self.bias_gen = nn.Linear(6, out_features * in_features), nn.Linear(6, out_features)

    def get_params(self, record: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = self.hyper(record)
        return self.weight_gen(embedded).view(-1, *self.shape), self.bias_gen(embedded)

    def forward(self, x: torch.Tensor, record: torch.Tensor) -> torch.Tensor:
        weights, biases = self.get_params(record)
        return torch.bmm(weights, x.unsqueeze(-1)).squeeze(-1) + biases


class HyperFusion(nn.Module):
    """A hypernetwork reads the table and makes the head of the image's network (Duenias et al., 2025)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Conv3d(1, 4, 3, 2, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 8, 3, 2, 1), nn.AdaptiveAvgPool3d(1)
        )
        self.linear1 = HyperLinear(8, 6, record=7)
        self.linear2 = nn.Linear(6, 3)

    def forward(self, x: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        image, tabular = x
        return self.linear2(F.relu(self.linear1(torch.flatten(self.blocks(image), 1), tabular)))


class ChannelAttention(nn.Module):
    def __init__(self, channels: int, record: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, channels))
        self.tab_mlp = nn.Sequential(nn.Linear(record, 4), nn.ReLU(), nn.Linear(4, channels))

    def forward(self, x: torch.Tensor, tab: torch.Tensor) -> torch.Tensor:
        channel_att_sum = None
        for pool in (F.adaptive_avg_pool3d, F.adaptive_max_pool3d):
            raw = self.mlp(pool(x, 1))
            channel_att_sum = raw if channel_att_sum is None else channel_att_sum + raw
        channel_att_sum = channel_att_sum + self.tab_mlp(tab)
        scale = torch.sigmoid(channel_att_sum)[..., None, None, None].expand_as(x)
        return x * scale


class SpatialAttention(nn.Module):
    def __init__(self, size: tuple[int, int, int], record: int) -> None:
        super().__init__()
        self.size = size
        self.tab_map = nn.Linear(record, size[0] * size[1] * size[2])
        self.spatial = nn.Conv3d(3, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, tab: torch.Tensor) -> torch.Tensor:
        tab_map = self.tab_map(tab).view(-1, 1, *self.size)
        pools = torch.cat([torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1), tab_map], dim=1)
        return x * torch.sigmoid(self.spatial(pools))


class TabAttention(nn.Module):
    """Attention over channels, then places, that asks the record, too (Grzeszczyk et al., 2023), with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv3d(1, 6, 3, 2, 1), nn.Conv3d(6, 6, 3, padding=1)
        self.channel_att, self.spatial_att = ChannelAttention(6, 5), SpatialAttention((4, 4, 4), 5)
        self.head = nn.Linear(6, 2)

    def forward(self, volume: torch.Tensor, record: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(volume))
        out = self.conv(x)
        out = self.spatial_att(self.channel_att(out, record), record)
        return self.head(F.relu(out + x).mean(dim=(2, 3, 4)))


OMICS = {"rna": ["x.rna"], "cna": ["x.cna"], "methylation": ["x.methylation"]}
EVERY_PAIR = {"id": "all", "pairs": "all", "match": {"kind": "concat"}}

CASES = (
    ZooCase(
        name="moli",
        build=lambda: MOLI({"e": (9, 8), "m": (7, 5), "c": (6, 4)}),
        inputs=lambda batch: (torch.randn(batch, 9), (torch.rand(batch, 7) > 0.5).float(), torch.randn(batch, 6)),
        modalities={"expression": ["expression"], "mutation": ["mutation"], "cna": ["cna"]},
        points=(
            point(
                "",
                "concat",
                flat(side("expression", 8), side("mutation", 5)),
                flat(side("expression", 8), side("cna", 4)),
                flat(side("mutation", 5), side("cna", 4)),
            ),
        ),
        rules=(EVERY_PAIR,),
        normalize="expression",
    ),
    ZooCase(
        name="customics",
        build=lambda: CustOmics({"rna": 9, "cna": 7, "methylation": 5}),
        inputs=lambda batch: (
            {"rna": torch.randn(batch, 9), "cna": torch.randn(batch, 7), "methylation": torch.randn(batch, 5)},
        ),
        modalities=OMICS,
        # The codes are joined twice, once to be encoded and once to be compared with what came back; the second time
        # nothing but the distance is made of them.
        points=(
            point(
                "",
                "concat",
                flat(side("rna", 6), side("cna", 6)),
                flat(side("rna", 6), side("methylation", 6)),
                flat(side("cna", 6), side("methylation", 6)),
                level=None,
            ),
            point(
                "",
                "concat",
                flat(side("rna", 6), side("cna", 6)),
                flat(side("rna", 6), side("methylation", 6)),
                flat(side("cna", 6), side("methylation", 6)),
                level=None,
                selected=False,
            ),
        ),
        rules=({"id": "codes", "pairs": "all", "match": {"kind": "concat", "nth": 0}},),
        normalize="rna",
    ),
    ZooCase(
        name="hyperfusion",
        build=HyperFusion,
        inputs=lambda batch: ((torch.randn(batch, 1, 8, 8, 8), torch.randn(batch, 7)),),
        modalities={"image": ["x.0"], "table": ["x.1"]},
        # Weight and bias are two halves of one layer, made of the same record.
        points=(point("linear1", "matmul", flat(side("image", 8), side("table", 7)), calls=2),),
        normalize="image",
    ),
    ZooCase(
        name="tab_attention",
        build=TabAttention,
        inputs=lambda batch: (torch.randn(batch, 1, 8, 8, 8), torch.randn(batch, 5)),
        modalities={"image": ["volume"], "table": ["record"]},
        # Both attentions weigh by what they make of both; what they weigh stays the image's, up to the shortcut.
        points=(
            point("channel_att", "sum", flat(side("image", 6), side("table", 6)), level="middle"),
            point(
                "spatial_att",
                "concat",
                flat(side("image", 1, 4, 4, 4), side("table", 1, 4, 4, 4)),
                flat(side("image", 1, 4, 4, 4), side("table", 1, 4, 4, 4)),
            ),
        ),
        normalize="image",
    ),
)
