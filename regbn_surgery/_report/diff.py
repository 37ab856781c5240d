"""The code of a host before and after surgery, as a unified diff with colours."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .._types import PlannedSite
from .shapes import owner_text, padding_text


class HostLike(Protocol):
    """What `show` needs to know about a host (see `regbn_surgery._surgery.HostReport`)."""

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
    @property
    def reason(self) -> str: ...
    @property
    def unhooked(self) -> str: ...
    @property
    def way(self) -> str: ...
    @property
    def files(self) -> Sequence[tuple[str, str, str, int]]: ...
    @property
    def slots(self) -> Sequence[tuple[int, str, str]]: ...


_WAYS = {
    "hook": "a hook replaces its arguments; its own code stays as it is",
    "source": "its own code, with RegBN at the calls below",
    "mode": "its own code runs as it is; a function mode puts RegBN between its operations",
    "graph": "its calls run in another order, from a graph of them",
}


def unified(before: str, after: str, name: str, context: int = 3, first: int = 1) -> str:
    """A unified diff; empty where nothing changed. `first` is the number of the first line in its file."""
    lines = difflib.unified_diff(_lines(before), _lines(after), name, name, lineterm="", n=context)
    return "\n".join(_HUNK.sub(lambda found: _shifted(found, first - 1), line) for line in lines)


def _lines(text: str) -> list[str]:
    """Its lines as Python counts them; `splitlines` would break at a form feed, too."""
    return text.removesuffix("\n").split("\n")


_HUNK = re.compile(r"^@@ -(\d+)(,\d+)? \+(\d+)(,\d+)? @@")


def _shifted(found: re.Match[str], by: int) -> str:
    old, old_count, new, new_count = found.groups(default="")
    return f"@@ -{int(old) + by}{old_count} +{int(new) + by}{new_count} @@"


def diff_of(host: HostLike) -> str:
    """What changes in a host: the lines of the user's own files, or of the graph of its calls."""
    if host.files:
        diffs = (unified(before, after, _from_here(file), first=first) for file, before, after, first in host.files)
        return _captioned("\n".join(diffs), host.slots)
    return unified(host.before, host.after, owner_text(host.host))


_SLOT = re.compile(r"\b_regbn\.\w+\((\d+)")
#: What stands on a line, in the order in which a head names it, and how.
_PARTS = {"f": "f", "g": "g", "fusion": "fusion", "reader": "reads f' or g'", "onward": "reads the fusion"}


def _captioned(diff: str, slots: Sequence[tuple[int, str, str]]) -> str:
    """The diff with, behind the lines of each hunk's head, which RegBN it is for, and what of it stands there."""
    lines: list[str] = []
    head = 0
    seen: list[int] = []
    for line in [*diff.split("\n"), "@@"]:
        if line.startswith(("@@", "---")):
            if seen:
                lines[head] += f" {_caption(seen, slots)}"
            head, seen = len(lines), []
        elif line.startswith("+") and not line.startswith("+++"):
            seen += [int(number) for number in _SLOT.findall(line)]
        lines.append(line)
    return "\n".join(lines[:-1])


def _caption(seen: Sequence[int], slots: Sequence[tuple[int, str, str]]) -> str:
    """`regbn_late: f, g, fusion`."""
    parts: dict[str, set[str]] = {}
    for number, site, what in slots:
        if number in seen:
            parts.setdefault(site, set()).add(what)
    return "; ".join(
        f"{site}: {', '.join(word for part, word in _PARTS.items() if part in found)}" for site, found in parts.items()
    )


def _from_here(file: str) -> str:
    """The path from the working directory where the file lies in it, so that the text says the same everywhere."""
    with contextlib.suppress(ValueError):
        return str(Path(file).relative_to(Path.cwd()))
    return file


def coloured(diff: str) -> Text:
    """The diff with its lines in the usual colours."""
    text = Text()
    for index, line in enumerate(diff.split("\n")):
        text.append(("\n" if index else "") + line, style=_style(line))
    return text


def _style(line: str) -> str:
    if line.startswith(("---", "+++")):
        return "bold"
    return {"-": "red", "+": "green", "@": "cyan"}.get(line[:1], "")


def host_views(hosts: Sequence[HostLike]) -> Iterator[RenderableType]:
    """For each rewritten host how RegBN gets in, and what its code becomes."""
    for host in hosts:
        name = owner_text(host.host)
        head = Text.assemble((name, "bold"), f" ({host.host_class}), {host.way}: {_WAYS.get(host.way, '')}")
        lines = Table.grid(padding=(0, 1))  # so that what is wrapped stays under itself
        lines.add_column(overflow="fold")
        lines.add_column(overflow="fold")
        for site in host.sites:
            inside = site.path.removeprefix(f"{host.host}." if host.host else "")
            lines.add_row(Text(f"  {inside}:"), Text(_flow(site)))
        for text in whys_of(host):
            what, _, reason = text.partition(": ")
            lines.add_row(Text(f"  why {what}:"), Text(reason))
        yield Group("", head, lines, "")
        if host.before:
            yield coloured(diff_of(host))
        elif host.after:
            yield Text(host.after)


def whys_of(host: HostLike) -> list[str]:
    """Why the host is not rewritten in a simpler way: `no hook: ...`, `not its source: ...`; empty for no reason."""
    reasons = (("no hook", host.unhooked), ("not its source", host.reason))
    return [f"{what}: {reason}" for what, reason in reasons if reason]


def _flow(site: PlannedSite) -> str:
    """Which tensors go through one RegBN: `argument gray, argument colored -> both replaced`."""
    f, g = site.pair or (site.f.anchor, site.g.anchor)
    returned = "both are replaced" if site.replace == "both" else "the first is replaced"
    out = [f"{letter} {text}" for letter in "fg" if (text := padding_text(site, letter))]
    return f"takes {f} as f and {g} as g; {'; '.join((returned, *out))}"
