"""How far the running projection lags behind branches that still learn, and what `update_regbn` makes of it.

python benchmarks/lagging_projection.py         # the table of docs/regbn.md, 2 minutes

A network for scans [1, 16, 16], a report and a table: the table's gate multiplies the features of the scan (f,
normalised against the gate's source g), and the report is concatenated. The table leaks into the scan, and goes with
the label. It is trained for 3 epochs of 2048 samples (96 steps) with `centre` and `correct_start`. Where branches are
`fixed` the encoders come from such a training and only RegBN and the classifier learn. Each figure is the held-out R2
of a least-squares fit on g, in evaluation, on new samples; means over the seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from what_is_removed import held_out

from regbn_surgery import regbnify, update_regbn

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
BATCH, SAMPLES, HELD_OUT = 64, 2048, 2000
OPTIONS: dict[str, dict[str, object]] = {
    "smoother (default)": {},
    "fixed, lam 0.1": {"constraint": "fixed", "lam": 0.1},
    "gcv": {"constraint": "gcv"},
    "gcv, momentum 0.1": {"constraint": "gcv", "momentum": 0.1},
}


class Net(nn.Module):
    """The gate of a table on a scan, then concatenation with a report."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.scan_net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.table_net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, width))
        self.report_net = nn.EmbeddingBag(50, 32)
        self.gate = nn.Linear(width, width)
        self.head = nn.Sequential(nn.Linear(width + 32, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, scan: Tensor, report: Tensor, table: Tensor) -> Tensor:
        features = self.scan_net(scan) * torch.sigmoid(self.gate(self.table_net(table)))
        logits: Tensor = self.head(torch.cat([features, self.report_net(report)], dim=-1))
        return logits


def rules(options: dict[str, object]) -> dict[str, object]:
    common = {"centre": True, "correct_start": True, **options}
    gate = {"id": "gate", "match": {"kind": "product"}, "normalize": "scan", "against": "table", "replace": "f"}
    inputs = {name: {"inputs": [name]} for name in ("scan", "report", "table")}
    skip = {"id": "joined", "match": {"kind": "concat"}, "action": "skip"}
    return {"version": 1, "modalities": inputs, "rules": [{**gate, "regbn": common}, skip]}


def draw(count: int, seed: int) -> Batch:
    """Scan, report, table and label."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 2, (count,), generator=generator)
    table = torch.randn(count, 12, generator=generator)
    table[:, 0] += 1.5 * (2 * label - 1)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    scan = 0.7 * torch.randn(count, 1, 16, 16, generator=generator)
    scan += 0.5 * table[:, 0, None, None, None] * torch.sin(6 * x) + 0.3 * table[:, 1, None, None, None] * y
    scan += 0.8 * label[:, None, None, None] * torch.exp(-((x - 0.3) ** 2 + (y + 0.2) ** 2) / 0.03)
    report = torch.randint(2, 50, (count, 10), generator=generator)
    return scan, report, table, label


def batches(data: Batch, generator: torch.Generator) -> Iterator[Batch]:
    order = torch.randperm(len(data[0]), generator=generator)
    for rows in order.split(BATCH):
        scan, report, table, label = (part[rows] for part in data)
        yield scan, report, table, label


def train(model: nn.Module, data: Batch, epochs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(epochs):
        model.train()
        for module in (model.scan_net, model.table_net, model.gate):
            if not any(p.requires_grad for p in module.parameters()):
                module.eval()
        for *inputs, label in batches(data, generator):
            loss = nn.functional.cross_entropy(model(*inputs), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def explained(model: nn.Module, data: Batch) -> tuple[float, float]:
    """R2 of f and of f' on g in evaluation."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    handle = model.regbn_gate.register_forward_hook(lambda _, given, out: seen.append((*given[:2], out[0])))
    model.eval()(*data[:3])
    handle.remove()
    f, g, left = seen[0]
    return held_out(f, g), held_out(left, g)


def measured(options: dict[str, object], epochs: int, seed: int, fixed: bool) -> tuple[float, float, float]:
    """R2 of f, of f' after training, and of f' after `update_regbn`."""
    torch.manual_seed(seed)
    data, new = draw(SAMPLES, 2 * seed + 1), draw(HELD_OUT, 2 * seed + 2)
    model = Net()
    if fixed:
        train(model, data, epochs, seed)
        for part in (model.scan_net, model.table_net, model.gate):
            part.requires_grad_(False)
    example = [part[:8] for part in data[:3]]
    model = regbnify(model, rules(options), tuple(example))
    train(model, data, epochs, seed + 100)
    f, trained = explained(model, new)
    update_regbn(model, batches(data, torch.Generator().manual_seed(seed)))
    return f, trained, explained(model, new)[1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args(argv)
    print("| branches | constraint | f | f' after training | f' after `update_regbn` |")
    print("| --- | --- | --- | --- | --- |")
    for fixed in (False, True):
        for name, options in OPTIONS.items():
            kind = "fixed" if fixed else "learned"
            print(f"{kind}, {name}", file=sys.stderr, flush=True)
            found = [measured(options, arguments.epochs, seed, fixed) for seed in range(arguments.seeds)]
            cells = (f"{sum(values) / len(values):.2f}" for values in zip(*found, strict=True))
            print(f"| {kind} | {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
