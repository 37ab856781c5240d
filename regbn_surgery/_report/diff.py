"""The code of a host before and after surgery, as a unified diff with colours."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Protocol

from rich.console import Group, RenderableType
from rich.text import Text

from .._types import PlannedSite
from .shapes import owner_text
from .tables import sites_table


class HostLike(Protocol):
    """What `show` needs to know about a host (see `regbn_surgery._rewrite.HostReport`)."""

    @property
    def host(self) -> str: ...
    @property
    def host_class(self) -> str: ...
    @property
    def tier(self) -> int: ...
    @property
    def sites(self) -> Sequence[PlannedSite]: ...
    @property
    def before(self) -> str: ...
    @property
    def after(self) -> str: ...


_TIERS = {
    1: "a hook replaces its arguments; its own forward stays as it is",
    2: "its forward is captured as a graph, with RegBN in it",
    3: "its own forward runs, with RegBN called between its operations",
}


def unified(before: str, after: str, name: str, context: int = 3) -> str:
    """A unified diff; empty where nothing changed."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"{name} (captured)", f"{name} (rewritten)", lineterm="", n=context
    )
    return "\n".join(lines)


def coloured(diff: str) -> Text:
    """The diff with its lines in the usual colours."""
    text = Text()
    for index, line in enumerate(diff.splitlines()):
        text.append(("\n" if index else "") + line, style=_style(line))
    return text


def _style(line: str) -> str:
    if line.startswith(("---", "+++")):
        return "bold"
    return {"-": "red", "+": "green", "@": "cyan"}.get(line[:1], "")


def host_views(hosts: Sequence[HostLike], width: int = 80) -> Iterator[RenderableType]:
    """For each rewritten host what goes in, how, and what its code becomes."""
    for host in hosts:
        how = _TIERS.get(host.tier, "")
        head = Text.assemble((owner_text(host.host), "bold"), f" ({host.host_class}), tier {host.tier}: {how}")
        name = owner_text(host.host)
        if host.before:
            code = coloured(unified(host.before, host.after, name))
        else:
            code = Text(host.after)
        yield Group(head, sites_table(host.sites, width), Text(""))
        yield code
        yield ""
