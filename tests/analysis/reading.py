"""Small models for the tests of this folder, and what the analysis says about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import regbn_surgery
from regbn_surgery import Inputs
from regbn_surgery._analysis import Analysis, analyse
from regbn_surgery._analysis._flow import Flow
from regbn_surgery._inputs import make_batches
from regbn_surgery._trace import Trace
from regbn_surgery._types import FusionPoint, Inspection
from tests.trace.replay import make

Forward = Callable[..., Any]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def inputs(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: normal(4, *shape) for name, shape in shapes.items()}


def inspected(forward: Forward, example: Any, modalities: Any = None, **children: Any) -> Inspection:
    return regbn_surgery.inspect(make(forward, **children), example, modalities)


def points(forward: Forward, example: Any, modalities: Any = None, **children: Any) -> list[FusionPoint]:
    return list(inspected(forward, example, modalities, **children).fusion_points)


def told(forward: Forward, example: Any, modalities: Any = None, **children: Any) -> list[tuple[str, set[str]]]:
    """The kinds and homes (`a`, `a+b`) of the points."""
    return [
        (point.kind, {"+".join(sorted(home)) for home in point.homes})
        for point in points(forward, example, modalities, **children)
    ]


def analysed(forward: Forward, example: Any, modalities: Any = None, **children: Any) -> Analysis:
    model = make(forward, **children)
    return analyse(model, make_batches(model, example), modalities)


def homes(forward: Forward, example: Any, modalities: Any = None, **children: Any) -> list[str]:
    """To which stream each tensor of the output belongs."""
    run = analysed(forward, example, modalities, **children).runs[0]
    return [home_of(run.trace, run.flow, uid) for uid in run.trace.frames[0].outputs]


def home_of(trace: Trace, flow: Flow, uid: int) -> str:
    lineage = flow.lineages.get(uid)
    return "+".join(sorted(lineage.home)) if lineage is not None else ""


__all__ = ["Inputs", "analysed", "homes", "inputs", "inspected", "make", "normal", "points", "told"]
