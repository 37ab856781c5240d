"""Is the code of a host still what it was when a plan for it was made?

A plan names calls by what they are; a forward may have changed and still have the same fusion points. So the plan
keeps a digest of the code of every host's forward, comments and layout left out.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap

from torch import nn

from .._errors import PlanError
from .._types import Plan
from ._classes import original_class


def forward_digests(model: nn.Module, plan: Plan) -> tuple[tuple[str, str], ...]:
    """(path, digest) of each host that the plan has a site in; "" for code whose source is not at hand."""
    hosts = dict.fromkeys(site.host for site in plan.sites)
    return tuple((path, _digest(original_class(model.get_submodule(path)))) for path in hosts)


def refuse_changed(model: nn.Module, plan: Plan) -> None:
    """Raises PlanError where a host's forward is not the one that the plan was made from."""
    if original_class(model).__name__ != plan.model:
        return  # another model altogether, which the plan says better
    hosts = dict(model.named_modules())
    changed = [
        f"{original_class(hosts[path]).__name__}.forward at `{path}`"
        for path, before in plan.forwards
        if path in hosts and before and _digest(original_class(hosts[path])) not in ("", before)
    ]
    if changed:
        raise PlanError(
            f"The code of {' and of '.join(changed)} has changed since the plan was made, so that its places may not "
            "be where they were. Make a new plan: plan(model, rules, example_inputs)."
        )


def _digest(cls: type[nn.Module]) -> str:
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(cls.forward)))
        code = ast.unparse(ast.parse(source))
    except (OSError, TypeError, SyntaxError):
        return ""
    return hashlib.sha256(code.encode()).hexdigest()[:16]
