"""The surgery: the only part of the library that changes a module."""

from __future__ import annotations

from ._adapters import KEEP_BESIDE, OWN_ADAPTERS, adapted_in, out_of_configs
from ._exchange import Make, exchange, made_paths
from ._fold import fold, freeze
from ._inside import (
    around_regbn,
    no_regbn,
    operations_of,
    rewritten_inside,
    the_rewritten,
    the_rewritten_to_change,
)
from ._keep import kept_at
from ._operations import Operation
from ._saving import RECIPE_FILE
from ._site import RegBNSite, identity
from ._source import forward_digests, refuse_changed
from ._surgery import SEVERAL_RULES, HostReport, explain, perform, refuse_second, repeat, undo
from ._verify import Verification, VerifiedSite, carried_in

__all__ = [
    "KEEP_BESIDE",
    "OWN_ADAPTERS",
    "RECIPE_FILE",
    "SEVERAL_RULES",
    "HostReport",
    "Make",
    "Operation",
    "RegBNSite",
    "Verification",
    "VerifiedSite",
    "adapted_in",
    "around_regbn",
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
    "out_of_configs",
    "perform",
    "refuse_changed",
    "refuse_second",
    "repeat",
    "rewritten_inside",
    "the_rewritten",
    "the_rewritten_to_change",
    "undo",
]
