"""Rules applied to what inspection found: one decision for every fusion point, and the sites that follow."""

from __future__ import annotations

from .binding import rebind
from .facts import Facts, SiteMasks
from .placing import PairSides, ResolvePair
from .planner import decide

__all__ = ["Facts", "PairSides", "ResolvePair", "SiteMasks", "decide", "rebind"]
