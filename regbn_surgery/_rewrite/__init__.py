"""The surgery: the only part of the library that changes a module."""

from __future__ import annotations

from ._site import RegBNSite, identity
from ._surgery import HostReport, explain, perform, refuse_second, undo

__all__ = ["HostReport", "RegBNSite", "explain", "identity", "perform", "refuse_second", "undo"]
