"""The surgery: the only part of the library that changes a module."""

from __future__ import annotations

from ._site import RegBNSite, identity
from ._surgery import HostReport, Operation, explain, operations_of, perform, refuse_second, repeat, undo

__all__ = [
    "HostReport",
    "Operation",
    "RegBNSite",
    "explain",
    "identity",
    "operations_of",
    "perform",
    "refuse_second",
    "repeat",
    "undo",
]
