"""Trains a user's model with several rules, their controls and none, with several seeds, and compares them in pairs."""

from ._running import sweep
from ._table import Sweep, SweepError, SweepResult

__all__ = ["Sweep", "SweepError", "SweepResult", "sweep"]
