"""What `inspect` and `show` have done before they write: the model loaded, analysed and operated on, once each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .._errors import RegBNWarning
from .options import ModelRequest
from .output import progress, quiet_stdout

if TYPE_CHECKING:
    from torch import nn

    from .._analysis import Analysis
    from .._report.graph import ModelGraph
    from .._rules import Rules
    from .._surgery import HostReport
    from .._types import Inspection, Plan


@dataclass(frozen=True)
class Inspected:
    """A model that was looked at; reports leave out notes with the codes in `ignore`."""

    analysis: Analysis
    ignore: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def inspection(self) -> Inspection:
        return replace(self.analysis.inspection, ignore=self.ignore)

    @cached_property
    def graph(self) -> ModelGraph:
        from .._report.graph_of_run import graph_of

        return graph_of(self.analysis)


@dataclass(frozen=True)
class Operated(Inspected):
    """A model and its copy after the surgery. `model` is None where the rules ask for nothing."""

    plan: Plan
    model: nn.Module | None

    @cached_property
    def hosts(self) -> tuple[HostReport, ...]:
        from .._surgery import explain

        return () if self.model is None else explain(self.model)

    @cached_property
    def after(self) -> ModelGraph | None:
        """The model after surgery: its run with RegBN in it."""
        if not self.plan.sites:
            return None
        from .._report.graph_of_run import graph_after

        return graph_after(self.graph, self.analysis, self.plan)


def inspected(request: ModelRequest, modalities: Mapping[str, Any] | None, ignore: tuple[str, ...] = ()) -> Inspected:
    """Load the model and find its fusion points; notes with the codes in `ignore` are left out."""
    with progress("loading torch and the model"), quiet_stdout():
        from .._inspecting import analysed

        built, inputs = request.load()
    with progress(f"running {type(built).__name__} and following its modalities"), quiet_stdout():
        return Inspected(analysed(built, inputs, modalities or None), ignore=ignore)


def operated(request: ModelRequest, rules: Rules) -> Operated:
    """Load the model, plan, and do the surgery on it."""
    with progress("loading torch and the model"), quiet_stdout():
        from .._api import operate
        from .._rehearsal import examined

        built, inputs = request.load(weights=True, section=rules.inputs)
    with progress(f"putting RegBN into {type(built).__name__}"), quiet_stdout(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RegBNWarning)  # they are in the plan, which is shown
        plan, analysis, model = operate(built, rules, inputs)
        plan = examined(model, plan, analysis, inputs)
    return Operated(analysis, plan, model if plan.sites else None)
