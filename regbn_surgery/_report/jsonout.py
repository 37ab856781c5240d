"""An inspection as plain JSON types. The format is versioned; `inspect.schema.json` describes it.

Keys are only ever added under the same `schema_version`; a removed or changed one raises it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._types import FusionPoint, Inspection, Layout, Operand, Plan, Side, Site
from .diff import HostLike
from .words import all_notes

SCHEMA_VERSION = 1


def inspection_to_dict(inspection: Inspection) -> dict[str, Any]:
    """The content of an inspection; `operands` describe the raw call, `sites` where RegBN would go.

    Which side of a site is f is for the rules to say: here `f` is its first side, `g` its second. The axes of a
    site are those of f; each side also has its own.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "model": inspection.model,
        "modalities": {modality.name: list(modality.roots) for modality in inspection.modalities},
        "fusion_points": [_point(point) for point in inspection.fusion_points],
        "notes": all_notes(inspection),
    }


def surgery_to_dict(plan: Plan, hosts: Sequence[HostLike]) -> dict[str, Any]:
    """What the surgery did: the plan, and each host with its code before and after."""
    return {
        "schema_version": SCHEMA_VERSION,
        "plan": plan.to_dict(),
        "hosts": hosts_to_list(hosts),
    }


def hosts_to_list(hosts: Sequence[HostLike]) -> list[dict[str, Any]]:
    """Each host that a surgery changed, with the modules in it and its code before and after."""
    return [
        {
            "host": host.host,
            "class": host.host_class,
            "tier": host.tier,
            "way": host.way,
            "modules": [site.path for site in host.sites],
            "reason": host.reason,
            "unhooked": host.unhooked,
            "before": host.before,
            "after": host.after,
        }
        for host in hosts
    ]


def _point(point: FusionPoint) -> dict[str, Any]:
    return {
        "id": point.id,
        "owner": point.owner,
        "owner_class": point.owner_class,
        "kind": point.kind,
        "op": point.op,
        "source": None if point.source is None else str(point.source),
        "level": point.level,
        "selected_by_default": point.selected_by_default,
        "operands": [_operand(operand) for operand in point.operands],
        "sites": [_site(site) for site in point.sites],
    }


def _operand(operand: Operand) -> dict[str, Any]:
    return {
        "modalities": list(operand.modalities),
        "home": list(operand.home),
        "producer": operand.producer,
        "shape": [int(size) for size in operand.shape],
        "dtype": operand.dtype,
        **_axes(operand.layout),
        "evidence": list(operand.layout.evidence),
    }


def _site(site: Site) -> dict[str, Any]:
    f, g = site.sides
    return {"f": _side(f), "g": _side(g), "host": site.host, **_axes(f.layout), "reduce": site.reduce}


def _side(side: Side) -> dict[str, Any]:
    return {
        "home": list(side.home),
        "anchor": side.anchor,
        "shape": [int(size) for size in side.shape],
        "dtype": side.dtype,
        **_axes(side.layout),
        "evidence": list(side.layout.evidence),
    }


def _axes(layout: Layout) -> dict[str, Any]:
    return {
        "batch_dim": layout.batch_dim,
        "channel_dim": layout.channel_dim,
        "spatial_dims": list(layout.spatial_dims),
    }
