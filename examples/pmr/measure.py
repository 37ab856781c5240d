"""Loss and accuracy of the joint prediction and of what each branch contributes to it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from data import Split
from torch import nn
from torch.nn import functional as F

#: In the order of the model's outputs.
MODALITIES = ("joint", "gray", "colored")
_BATCH = 500


@dataclass(frozen=True)
class Measurement:
    """Mean cross-entropy (nats) and accuracy (0..1) over one split after `epoch` epochs."""

    epoch: int
    split: str  # "train" or "test"
    modality: str  # one of MODALITIES
    loss: float
    accuracy: float


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, name: str, epoch: int, device: torch.device) -> list[Measurement]:
    """Measure `model` in evaluation mode over the whole split, and put it back into the mode it was in."""
    was_training = model.training
    model.eval()
    loss, hits = ([0.0] * len(MODALITIES) for _ in range(2))
    for start in range(0, len(split), _BATCH):
        gray, colored, labels = split.batch(slice(start, start + _BATCH), device)
        for i, logits in enumerate(model(gray, colored)):
            loss[i] += F.cross_entropy(logits, labels, reduction="sum").item()
            hits[i] += (logits.argmax(dim=1) == labels).sum().item()
    model.train(was_training)
    n = len(split)
    return [Measurement(epoch, name, m, loss[i] / n, hits[i] / n) for i, m in enumerate(MODALITIES)]


def pick(history: Sequence[Measurement], split: str, modality: str) -> list[Measurement]:
    """The measurements of one split and modality, by epoch."""
    return [m for m in history if m.split == split and m.modality == modality]


def write_history(history: Iterable[Measurement], path: Path) -> None:
    """One CSV row per epoch, split and modality."""
    write_rows([asdict(m) for m in history], [f.name for f in fields(Measurement)], path)


def read_history(path: Path) -> list[Measurement]:
    """What `write_history` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Measurement(int(r["epoch"]), r["split"], r["modality"], float(r["loss"]), float(r["accuracy"]))
            for r in csv.DictReader(file)
        ]


def write_rows(rows: Iterable[dict[str, object]], columns: Sequence[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
