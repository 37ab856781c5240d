"""Is the code of a host still what it was when a plan for it was made?

A plan names calls by what they are; a forward may have changed and still have the same fusion points. So the plan
keeps the fingerprint of every host's forward.
"""

from __future__ import annotations

from torch import nn

from .._errors import PlanError
from .._types import Plan
from ._changed import fingerprint
from ._classes import original_class, unbound_function
from ._locate import Locator


def forward_digests(model: nn.Module, plan: Plan) -> tuple[tuple[str, str], ...]:
    """(path, fingerprint) of each host that the plan has a site in; "" for code whose source is not at hand."""
    hosts = dict.fromkeys(site.host for site in plan.sites)
    return tuple((path, _fingerprint(model.get_submodule(path))) for path in hosts)


def refuse_changed(model: nn.Module, plan: Plan) -> None:
    """Raises PlanError where a host's forward is not the one that the plan was made from."""
    if original_class(model).__name__ != plan.model:
        return  # another model altogether, which the plan says better
    hosts = dict(model.named_modules())
    changed = [
        f"{original_class(hosts[path]).__name__}.forward at `{path}`"
        for path, before in plan.forwards
        if path in hosts and before and _fingerprint(hosts[path]) not in ("", before)
    ]
    if changed:
        raise PlanError(
            f"The code of {' and of '.join(changed)} has changed since the plan was made, so the planned places may "
            "have moved. Make a new plan: plan(model, rules, example_inputs)."
        )


def _fingerprint(host: nn.Module) -> str:
    locator = Locator(original_class(host), unbound_function(host))
    text = "" if locator.entry() is None else locator.text_of_entry().text
    return fingerprint(text) if text else ""
