"""The same tables as plain strings, for `print` and for files: no colours, 80 columns."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.text import Text

from .._types import Inspection, Plan
from .console import SafeConsole
from .diff import HostLike, host_views
from .tables import inspection_view, plan_view


def inspection_to_text(inspection: Inspection, width: int = 80) -> str:
    """What inspection found, as lines of at most `width` columns."""
    return plain(inspection_view(inspection, width), width)


def plan_to_text(plan: Plan, width: int = 80) -> str:
    """What the rules decide, as lines of at most `width` columns."""
    return plain(plan_view(plan, width), width)


def hosts_to_text(hosts: Sequence[HostLike], width: int = 80) -> str:
    """What a surgery did to each host; code is neither wrapped nor cut."""
    return "\n".join(plain(view, width) for view in host_views(hosts)).strip("\n")


def show(console: Console, view: RenderableType) -> None:
    """Print a view. Code comes as `Text` and is neither wrapped nor cut, so that it can be copied."""
    console.print(view, soft_wrap=isinstance(view, Text))


def plain(view: RenderableType, width: int = 80) -> str:
    """Any rich view as plain text without trailing spaces."""
    out = io.StringIO()
    console = SafeConsole(file=out, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    show(console, view)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
