"""The rules language: reads what the user wants done, and says everything that is wrong with it at once.

Imports no torch: a rules file can be checked without a model.
"""

from __future__ import annotations

from .document import Rules
from .patterns import matches
from .presets import preset_names
from .schema import InputSpec, Match, Override, Rule

__all__ = ["InputSpec", "Match", "Override", "Rule", "Rules", "matches", "preset_names"]
