"""What the user is told of a call in which the sides of a RegBN do not meet: once, or as its rule says (`missing`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from .._codes import coded
from .._errors import RegBNBypassedError
from .._user_code import warn_at_call
from ._arguments import spelled
from ._changed import named_at
from ._compiling import outside_graphs
from ._record import CodeSite
from ._site import site_at

if TYPE_CHECKING:
    from ._passage import Passage

_LATER = "Later calls like this give no warning; see `missing` in the rule."


def untold(host: nn.Module, sites: Sequence[CodeSite], passage: Passage | None) -> list[tuple[str, str]]:
    """The sites that a call left out and the user is to hear of, each with the reason.

    Plain loops, which a compiler can follow.
    """
    found = []
    for site in sites:
        if passage is not None:
            if site.name in passage.reached or site.name in passage.went_on:
                continue
            if passage.reached and (site.name, "f") not in passage.held and (site.name, "g") not in passage.held:
                continue  # nothing of it was computed: another part of the model ran
        module = site_at(host, site.name)
        if module.missing == "error" or (module.missing == "warn" and not module.told_missing):
            found.append((site.name, why_not(site, passage)))
    return found


def tell(host: nn.Module, path: str, name: str, why: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Warn that RegBN did not run at the site `name`.

    Raises:
        RegBNBypassedError: where its rule says `missing: error`.
    """
    module = site_at(host, name)
    named = getattr(module.regbn, "site_path", "") or name  # the host may know it by another name than the model does
    text = (
        f"{named_at(type(host), path)} was called ({spelled(args, kwargs)}), and {why}: RegBN `{named}` did not run; "
        "there the call goes on as in the original."
    )
    if module.missing == "error":
        raise RegBNBypassedError(text + " (The rule says `missing: error`.)")
    module.told_missing = True
    text = coded("RB401", f"{text} If it should fuse them, give `regbnify` a second example of it. {_LATER}")
    warn_at_call(text)


#: The same in a call that is being compiled. It breaks the graph there, once where the rule has a warning.
tell_outside_graphs = outside_graphs(tell)


def why_not(site: CodeSite, passage: Passage | None) -> str:
    """Why RegBN did not run at a site."""
    if passage is None:
        return "its forward is not the one that RegBN was inserted into"
    there = [side for side in "fg" if (site.name, side) in passage.held]
    if any(read.site == site.name for read in passage.early):
        return "one side was read before the other existed"
    if len(there) == 2:
        return f"f and g do not meet at {site.join.op}"
    return f"only {there[0]} was computed" if there else "neither f nor g was computed"
