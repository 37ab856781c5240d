"""Find where the modalities of a PyTorch model meet, and put RegBN there.

>>> from regbn_surgery import regbnify, inspect
>>> print(inspect(model, example_inputs))          # where do my modalities meet?
>>> model = regbnify(model, "rules.yaml", example_inputs)   # the same class, the same keys, with RegBN inside

Find and plan:

    inspect               find where the modalities of a model meet
    starter_rules         write a first rules file for a model
    plan                  say what rules would do to a model
    Inputs                positional and keyword arguments of one example call
    Rules                 a rules file, read and checked

Change a model:

    regbnify              put RegBN into a model where the rules say
    unregbnify            take RegBN out again
    freeze                keep the running projections fixed in training
    fold                  merge RegBN into the linear layer behind it, for inference
    update_regbn          form the running projections again after training, from a pass over the data
    convert_sync_regbn    fit on the joined batch of all ranks
    RegBN                 the module itself, for use by hand

Look at the result:

    explain               show the code of each host before and after
    verify                check in other calls which modalities each RegBN gets
    diagnose              measure how dependent the modalities are, before and after RegBN
    summary               list each RegBN with its state and its share of memory and time
    statistics            numbers on each RegBN for a logger
    sweep                 train with several rules, their controls and without RegBN, and compare
    trace                 record one call of a model as a graph

Save and load:

    save_regbn            write weights and recipe
    load_regbn            put RegBN and its weights into a fresh model
    Recipe                what the surgery did, to repeat it on another instance

What functions return:

    Inspection            what `inspect` found: modalities, fusion points, notes
    FusionPoint           one call at which modalities meet
    Modality              a named group of inputs, or of outputs of modules
    Site                  a pair of tensors at a fusion point between which RegBN can go
    Plan                  decisions, sites and notes that follow from rules
    PlannedSite           one RegBN that will be put in
    SurgeryReport         what `explain` says: every host
    HostReport            one rewritten module, and how RegBN gets into it
    Verification          what `verify` found
    VerifiedSite          one RegBN in one call
    Diagnosis             what `diagnose` measured
    Dependence            how well g predicts f at one site
    Summary               what `summary` says: each RegBN, and the whole model
    HostSummary           one host in it, without its RegBN
    RegBNSummary          one RegBN in it
    Sweep                 the results of all runs of `sweep`
    SweepResult           one measure of one run

Errors and warnings, all of them `RegBNError` or `RegBNWarning`:

    RegBNError            base class of every error raised on purpose
    RegBNWarning          something worth knowing; its text begins with a code of docs/notes.md
    InputsError           example inputs are missing or do not fit the model
    CaptureError          the model could not be run or recorded
    RulesError            a rules file that cannot be read, with every problem and its place
    PlanError             rules that cannot be applied to this model
    NothingMatchedError   a rule matched no fusion point
    RewriteError          the surgery could not be done; the model is as it was
    AlreadyRewrittenError   the model carries RegBN already
    RecipeError           a recipe does not fit the model
    UnseenCallError       a rewritten model was called in a way that it cannot handle
    RegBNBypassedError    a call would skip RegBN, or continue a cache without it
    RegBNShapeError       tensors or sizes that do not fit a RegBN
    RegBNOptionError      an option of RegBN that is out of range
    SweepError            a sweep that cannot be run or continued

Names are imported on first use (PEP 562), so that `regbn-surgery --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from ._api import fold, freeze, plan, regbnify, unregbnify, verify
    from ._checkpoint import Recipe, load_regbn, save_regbn
    from ._diagnosis import Dependence
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
    from ._probe import Diagnosis, diagnose
    from ._rules import Rules
    from ._starter import starter_rules
    from ._statistics import statistics
    from ._summary import HostSummary, RegBNSummary, Summary, summary
    from ._surgery import HostReport, Verification, VerifiedSite
    from ._sweep import Sweep, SweepError, SweepResult, sweep
    from ._tracing import trace
    from ._types import FusionPoint, Inspection, Modality, Plan, PlannedSite, Site
    from ._update_regbn import update_regbn
    from .nn import RegBN, convert_sync_regbn

_HOME = {
    **dict.fromkeys(("fold", "freeze", "plan", "regbnify", "unregbnify", "verify"), "._api"),
    **dict.fromkeys(("HostReport", "Verification", "VerifiedSite"), "._surgery"),
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
    "Dependence": "._diagnosis",
    **dict.fromkeys(("Diagnosis", "diagnose"), "._probe"),
    "starter_rules": "._starter",
    **dict.fromkeys(("HostSummary", "RegBNSummary", "Summary", "summary"), "._summary"),
    **dict.fromkeys(("Recipe", "load_regbn", "save_regbn"), "._checkpoint"),
    **dict.fromkeys(("FusionPoint", "Inspection", "Modality", "Plan", "PlannedSite", "Site"), "._types"),
    "Rules": "._rules",
    **dict.fromkeys(("RegBN", "convert_sync_regbn"), ".nn"),
    "statistics": "._statistics",
    **dict.fromkeys(("Sweep", "SweepError", "SweepResult", "sweep"), "._sweep"),
    "trace": "._tracing",
    "update_regbn": "._update_regbn",
}

__all__ = [
    "AlreadyRewrittenError",
    "CaptureError",
    "Dependence",
    "Diagnosis",
    "FusionPoint",
    "HostReport",
    "HostSummary",
    "Inputs",
    "InputsError",
    "Inspection",
    "Modality",
    "NothingMatchedError",
    "Plan",
    "PlanError",
    "PlannedSite",
    "Recipe",
    "RecipeError",
    "RegBN",
    "RegBNBypassedError",
    "RegBNError",
    "RegBNOptionError",
    "RegBNShapeError",
    "RegBNSummary",
    "RegBNWarning",
    "RewriteError",
    "Rules",
    "RulesError",
    "Site",
    "Summary",
    "SurgeryReport",
    "Sweep",
    "SweepError",
    "SweepResult",
    "UnseenCallError",
    "Verification",
    "VerifiedSite",
    "__version__",
    "convert_sync_regbn",
    "diagnose",
    "explain",
    "fold",
    "freeze",
    "inspect",
    "load_regbn",
    "plan",
    "regbnify",
    "save_regbn",
    "starter_rules",
    "statistics",
    "summary",
    "sweep",
    "trace",
    "unregbnify",
    "update_regbn",
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
