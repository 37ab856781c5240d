"""Rules applied to what inspection found: one decision for every fusion point, and the sites that follow."""

from __future__ import annotations

from .binding import rebind
from .facts import Beside, Facts, SiteMasks
from .placing import PairSides, ResolvePair
from .planner import decide

__all__ = ["Beside", "Facts", "PairSides", "ResolvePair", "SiteMasks", "decide", "rebind"]
