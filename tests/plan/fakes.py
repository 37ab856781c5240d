"""Inspections as the analysis would give them, made by hand: no model is needed to test what the rules decide."""

from __future__ import annotations

from typing import Any

from regbn_surgery._types import (
    ExcludedInput,
    FusionPoint,
    InputTensor,
    Inspection,
    Layout,
    Modality,
    Operand,
    Side,
    Site,
    Source,
)

VECTOR = Layout(0, 1, (), evidence=("channel axis 1: last axis of Linear `proj`",))
MAP = Layout(0, 1, (2, 3), evidence=("channel axis 1: axis 1 of Conv2d `conv`",))
TOKENS = Layout(0, 2, (1,), sequence=True, evidence=("channel axis 2: last axis of Embedding `tokens`",))
UNKNOWN = Layout(0, None, (), evidence=("reshaped from (8, 28, 28)",))


def side(home: str, shape: tuple[int, ...] = (8, 96), layout: Layout = VECTOR, anchor: str = "an operand") -> Side:
    """A side whose home is written `gray` or `image+text`."""
    return Side(tuple(home.split("+")), shape, "float32", layout, anchor)


def site(f: Side, g: Side, host: str = "", **rest: Any) -> Site:
    return Site(host, (f, g), **{"reduce": "flatten", **rest})


def point(id: str, *sides: Side, sites: tuple[Site, ...] | None = None, **rest: Any) -> FusionPoint:
    """A point at which the given sides meet, with a site for each pair of them."""
    owner = rest.pop("owner", "")
    if sites is None:
        sites = tuple(site(f, g, owner) for i, f in enumerate(sides) for g in sides[i + 1 :])
    defaults: dict[str, Any] = {
        "owner_class": "Fusion",
        "kind": "concat",
        "op": "cat",
        "source": Source("/home/me/model.py", 42, "forward"),
        "level": "late",
        "selected_by_default": True,
    }
    operands = tuple(Operand(s.home, s.home, "Linear `proj`", s.shape, s.dtype, s.layout) for s in sides)
    return FusionPoint(id=id, owner=owner, operands=operands, sites=sites, **{**defaults, **rest})


def inspection(*points: FusionPoint, modalities: tuple[str, ...] = ("gray", "colored"), **rest: Any) -> Inspection:
    inputs = tuple(InputTensor(name, (8, 3, 28, 28), "float32", MAP) for name in modalities)
    return Inspection(
        model=rest.pop("model", "TwoBranch"),
        modalities=tuple(Modality(name, (name,)) for name in modalities),
        inputs=inputs,
        excluded=rest.pop("excluded", (ExcludedInput("mask", "its name says mask"),)),
        fusion_points=points,
        **rest,
    )
