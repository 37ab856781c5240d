"""One HTML file that shows a model as a graph to walk through: works offline, asks for nothing, runs none of the
model's text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from .diff import HostLike, diff_of, whys_of
from .graph import PALETTE, ModelGraph
from .scene import essential, well_opened

#: So many nodes and closed modules the page begins with, as a rule.
_MOST = 70


def to_page(before: ModelGraph, after: ModelGraph | None = None, hosts: Sequence[HostLike] = ()) -> str:
    """The page for a model, with a switch between before and after the surgery where there was one."""
    opened = well_opened(essential(before), _MOST)
    if after is not None:
        opened |= well_opened(essential(after), _MOST)
    content = {
        "before": before.to_dict(),
        "after": None if after is None else after.to_dict(),
        "opened": sorted(opened - {""}),
        "colours": len(PALETTE),
        "hosts": [_host(host) for host in hosts],
    }
    script = "\n".join(_part(name) for name in ("layout.js", "view.js", "page.js"))
    style = _part("page.css") + _palette()
    page = _part("page.html")
    for mark, text in (("@STYLE@", style), ("@SCRIPT@", script), ("@DATA@", _json(content))):
        before_mark, _, rest = page.partition(mark)  # once each, the model's text last: it may hold a mark, too
        page = before_mark + text + rest
    return page


def _host(host: HostLike) -> dict[str, object]:
    diff = diff_of(host) if host.before else host.after
    return {
        "host": host.host,
        "class": host.host_class,
        "tier": host.tier,
        "way": host.way,
        "why": whys_of(host),
        "diff": diff,
    }


def _json(content: object) -> str:
    """JSON that ends no `script` element and opens no comment, whatever is in it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _palette() -> str:
    light = "".join(f".m{i}{{--stream:{colours[0]}}}" for i, colours in enumerate(PALETTE))
    dark = [f".m{i}{{--stream:{colours[1]}}}" for i, colours in enumerate(PALETTE)]
    forced = "".join(f':root[data-theme="dark"] {rule}' for rule in dark)
    preferred = "".join(f':root:not([data-theme="light"]) {rule}' for rule in dark)
    return f"{light}{forced}@media (prefers-color-scheme:dark){{{preferred}}}"


@cache
def _part(name: str) -> str:
    return files(__package__).joinpath("page_parts").joinpath(name).read_text(encoding="utf-8")
