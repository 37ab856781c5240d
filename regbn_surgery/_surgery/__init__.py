"""The surgery: the only part of the library that changes a module."""

from __future__ import annotations

from ._adapters import KEEP_BESIDE, OWN_ADAPTERS, adapted_in
from ._exchange import Make, exchange, made_paths
from ._fold import fold, freeze
from ._keep import kept_at
from ._operations import Operation
from ._saving import RECIPE_FILE
from ._site import RegBNSite, identity
from ._source import forward_digests, refuse_changed
from ._surgery import HostReport, explain, no_regbn, operations_of, perform, refuse_second, repeat, undo
from ._verify import Verification, VerifiedSite, carried_in

__all__ = [
    "KEEP_BESIDE",
    "OWN_ADAPTERS",
    "RECIPE_FILE",
    "HostReport",
    "Make",
    "Operation",
    "RegBNSite",
    "Verification",
    "VerifiedSite",
    "adapted_in",
    "carried_in",
    "exchange",
    "explain",
    "fold",
    "forward_digests",
    "freeze",
    "identity",
    "kept_at",
    "made_paths",
    "no_regbn",
    "operations_of",
    "perform",
    "refuse_changed",
    "refuse_second",
    "repeat",
    "undo",
]
