"""Find where the modalities of a PyTorch model meet, and put RegBN there.

>>> from regbn_surgery import regbnify, inspect
>>> print(inspect(model, example_inputs))          # where do my modalities meet?
>>> model = regbnify(model, "rules.yaml", example_inputs)   # the same class, the same keys, with RegBN inside

Names are imported on first use (PEP 562), so that `regbn-surgery --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from ._api import fold, freeze, plan, regbnify, unregbnify, verify
    from ._checkpoint import Recipe, load_regbn, save_regbn
    from ._errors import (
        AlreadyRewrittenError,
        CaptureError,
        InputsError,
        NothingMatchedError,
        PlanError,
        RecipeError,
        RegBNBypassedError,
        RegBNError,
        RegBNOptionError,
        RegBNShapeError,
        RegBNWarning,
        RewriteError,
        RulesError,
        UnseenCallError,
    )
    from ._explain import SurgeryReport, explain
    from ._inputs import Inputs
    from ._inspecting import inspect
    from ._rules import Rules
    from ._statistics import statistics
    from ._surgery import Verification, VerifiedSite
    from ._sweep import Sweep, SweepError, SweepResult, sweep
    from ._tracing import trace
    from ._types import Inspection, Plan
    from .nn import RegBN, convert_sync_regbn

_HOME = {
    **dict.fromkeys(("fold", "freeze", "plan", "regbnify", "unregbnify", "verify"), "._api"),
    **dict.fromkeys(("Verification", "VerifiedSite"), "._surgery"),
    "inspect": "._inspecting",
    **dict.fromkeys(
        (
            "AlreadyRewrittenError",
            "CaptureError",
            "InputsError",
            "NothingMatchedError",
            "PlanError",
            "RecipeError",
            "RegBNBypassedError",
            "RegBNError",
            "RegBNOptionError",
            "RegBNShapeError",
            "RegBNWarning",
            "RewriteError",
            "RulesError",
            "UnseenCallError",
        ),
        "._errors",
    ),
    **dict.fromkeys(("SurgeryReport", "explain"), "._explain"),
    "Inputs": "._inputs",
    **dict.fromkeys(("Recipe", "load_regbn", "save_regbn"), "._checkpoint"),
    **dict.fromkeys(("Inspection", "Plan"), "._types"),
    "Rules": "._rules",
    **dict.fromkeys(("RegBN", "convert_sync_regbn"), ".nn"),
    "statistics": "._statistics",
    **dict.fromkeys(("Sweep", "SweepError", "SweepResult", "sweep"), "._sweep"),
    "trace": "._tracing",
}

__all__ = [
    "AlreadyRewrittenError",
    "CaptureError",
    "Inputs",
    "InputsError",
    "Inspection",
    "NothingMatchedError",
    "Plan",
    "PlanError",
    "Recipe",
    "RecipeError",
    "RegBN",
    "RegBNBypassedError",
    "RegBNError",
    "RegBNOptionError",
    "RegBNShapeError",
    "RegBNWarning",
    "RewriteError",
    "Rules",
    "RulesError",
    "SurgeryReport",
    "Sweep",
    "SweepError",
    "SweepResult",
    "UnseenCallError",
    "Verification",
    "VerifiedSite",
    "__version__",
    "convert_sync_regbn",
    "explain",
    "fold",
    "freeze",
    "inspect",
    "load_regbn",
    "plan",
    "regbnify",
    "save_regbn",
    "statistics",
    "sweep",
    "trace",
    "unregbnify",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
