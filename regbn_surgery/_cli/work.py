"""What `inspect` and `show` have done before they write: the model loaded, analysed and operated on, once each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from .._errors import RegBNWarning
from .options import ModelRequest
from .output import message, progress, quiet_stdout

if TYPE_CHECKING:
    from torch import nn

    from .._analysis import Analysis
    from .._report.graph import ModelGraph
    from .._rules import Rules
    from .._surgery import HostReport
    from .._types import Inspection, Plan

Found = TypeVar("Found")


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


def looked_at(
    request: ModelRequest,
    section: Mapping[str, Any] | None,
    doing: str,
    look: Callable[[nn.Module, Any], Found],
    *,
    planning: bool = False,
) -> Found:
    """`look(model, inputs)` for the model of the request, of which no values are needed as a rule.

    `doing` is shown meanwhile, with the model's class for `{}`. `section`: the `inputs:` of the rules. A large `hf:`
    model (`planning`: a very large one) is built without values, and again with random ones if it does not run without.
    """
    from .._errors import CaptureError
    from .._fakes import is_weightless

    with progress("loading torch and the model"), quiet_stdout():
        built, inputs = request.load(section=section, planning=planning)
    name = type(built).__name__
    try:
        with progress(doing.format(name)), quiet_stdout():
            return look(built, inputs)
    except CaptureError:
        if not (request.spec.startswith("hf:") and is_weightless(built)):
            raise
    del built
    message(f"{name} does not run without values, so it is built again with random weights")
    with progress(f"loading {name} with random weights"), quiet_stdout():
        built, inputs = request.load(weights=True, section=section)
    try:
        with progress(doing.format(name)), quiet_stdout():
            return look(built, inputs)
    except CaptureError as error:
        raise CaptureError(
            f"{error} The inputs of an `hf:` model are made up from its configuration: add what is missing by `--input "
            "NAME=int64[2,6]`, or say it with `--model-args`"
        ) from error


def inspected(request: ModelRequest, modalities: Mapping[str, Any] | None, ignore: tuple[str, ...] = ()) -> Inspected:
    """Load the model and find its fusion points; notes with the codes in `ignore` are left out."""

    def look(built: nn.Module, inputs: Any) -> Inspected:
        from .._inspecting import analysed

        return Inspected(analysed(built, inputs, modalities or None), ignore=ignore)

    return looked_at(request, None, "running {} and following its modalities", look)


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
