"""Rules applied to what inspection found: one decision for every fusion point, and the sites that follow."""

from __future__ import annotations

from .planner import ResolvePair, decide

__all__ = ["ResolvePair", "decide"]
