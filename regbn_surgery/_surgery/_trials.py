"""Trial runs of a whole model, which leave nothing behind: to hold a rewritten model to the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .._analysis import Observed, values_of
from .._errors import RewriteError
from .._inputs import Inputs
from .._state import preserved, seeded
from ._arguments import own_arguments
from ._classes import original_forward
from ._compare import difference, difference_of_values
from ._graph_host import GraphHost
from ._guard import ATTRIBUTE, on_the_stack
from ._host import HostSurgery
from ._reorder import without_dropout
from ._site import Reached, identity


@contextmanager
def _trial(model: nn.Module, training: bool, writes: bool) -> Iterator[None]:
    with preserved(model, parameters=writes), seeded(), torch.set_grad_enabled(training):
        model.train(training)
        yield


def run(model: nn.Module, inputs: Inputs, training: bool, writes: bool) -> Any:
    with _trial(model, training, writes):
        args, kwargs = own_arguments(inputs.args, inputs.kwargs)
        return model(*args, **kwargs)


def _put(host: nn.Module, forward: Any) -> None:
    """What stood as `forward` on the instance before; None where nothing did."""
    host.__dict__.pop("forward", None)
    if forward is not None:
        host.__dict__["forward"] = forward


def observe(model: nn.Module, inputs: Inputs, training: bool, writes: bool) -> Observed:
    """Run the model, and keep what it gives."""
    with _trial(model, training, writes):
        args, kwargs = own_arguments(inputs.args, inputs.kwargs)
        return Observed(inputs, training, values_of(model(*args, **kwargs)))


def check(model: nn.Module, expected: Sequence[Observed], writes: bool) -> Reached:
    """Hold the model to what the original gave in these runs, with identity in place of RegBN; gives the sites reached.

    Raises:
        RewriteError: where it gives anything else.
    """
    hosts = [(module, module.__dict__.get(ATTRIBUTE)) for module in model.modules()]
    coded = [(module, surgery) for module, surgery in hosts if isinstance(surgery, HostSurgery)]
    for _, surgery in coded:
        surgery.returns = {}
    sites = Reached()
    for number, wanted in enumerate(expected):
        with identity(model) as reached:
            found = observe(model, wanted.inputs, wanted.training, writes)
        sites |= reached
        wrong = difference_of_values(wanted.values, found.values)
        if wrong is not None and wanted.training and reordered(model):
            wrong = _difference_without_dropout(model, wanted.inputs, writes)
        if wrong is not None:
            mode = "training" if wanted.training else "evaluation"
            raise RewriteError(f"self-check failed in {mode} mode on {wanted.inputs!r}: {wrong}")
        if number == 0 and _lifted(coded):
            with identity(model) as still_reached:
                found = observe(model, wanted.inputs, wanted.training, writes)
            wrong = difference_of_values(wanted.values, found.values)
            if wrong is None and reached.keys() - still_reached.keys():
                wrong = "RegBN does not run any more"
            if wrong is not None:
                raise RewriteError(f"self-check failed, with f and g taken where helper functions return them: {wrong}")
    return sites


def _lifted(coded: list[tuple[nn.Module, HostSurgery]]) -> bool:
    """Let every host take sides where helpers return them; whether any does."""
    changed = [surgery.lift(host) for host, surgery in coded]
    return any(changed)


def reordered(model: nn.Module) -> bool:
    """Whether a generated forward makes calls in another order than the original."""
    found = [module.__dict__.get(ATTRIBUTE) for module in model.modules()]
    surgeries = [surgery for surgery in found if isinstance(surgery, GraphHost)]
    return any(k.variant.reordered for surgery in surgeries for many in surgery.variants.values() for k in many)


def _difference_without_dropout(model: nn.Module, inputs: Inputs, writes: bool) -> str | None:
    """What differs in training beside the order in which dropout draws its numbers."""
    with without_dropout(model), identity(model):
        with _as_before([module for module in model.modules() if ATTRIBUTE in module.__dict__]):
            wanted = run(model, inputs, True, writes)
        return difference(wanted, run(model, inputs, True, writes))


@contextmanager
def _as_before(hosts: list[nn.Module]) -> Iterator[None]:
    """For the time of the `with`, hosts run their original forwards."""
    before = {host: host.__dict__.get("forward") for host in hosts}
    originals = {host: original_forward(host) for host in hosts}
    for host, original in originals.items():
        host.__dict__["forward"] = _on_the_stack(host.__dict__[ATTRIBUTE].token, original)
    try:
        yield
    finally:
        for host in hosts:
            _put(host, before[host])


def _on_the_stack(token: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        with on_the_stack(token):
            return forward(*args, **kwargs)

    return called
