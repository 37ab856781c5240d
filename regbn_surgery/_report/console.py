"""A terminal that the names in a model cannot speak to: what would move its cursor, or colour, is spelled out."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from .._visible import visible


class SafeConsole(Console):
    """As rich's, with the control characters of whatever is printed spelled out. Styles are rich's own, and stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
