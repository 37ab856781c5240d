"""The RegBN operator and what belongs to it.

Names are imported on first use, so that `regbn_surgery.nn.options` stays free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .options import RegBNOptions

if TYPE_CHECKING:
    from .baselines import NormsOnly, RegressOut
    from .fold import fold_into_linear
    from .regbn import RegBN, convert_sync_regbn

_HOME = {
    "NormsOnly": ".baselines",
    "RegBN": ".regbn",
    "RegressOut": ".baselines",
    "convert_sync_regbn": ".regbn",
    "fold_into_linear": ".fold",
}

__all__ = ["NormsOnly", "RegBN", "RegBNOptions", "RegressOut", "convert_sync_regbn", "fold_into_linear"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
