"""The long description of the distributions: README.md without links that only a clone of the repository can follow.

An index such as PyPI shows the description alone. Relative links and pictures become absolute ones of `project.urls`
(the entry `Repository`, or `Source`); without such an entry links become their text, and pictures are left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from hatchling.metadata.plugin.interface import MetadataHookInterface

_ENTRIES = ("repository", "source", "source code", "homepage")
_FENCED = re.compile(r"^(```.*?^```)", re.M | re.S)
_LINK = re.compile(r"(!?)\[([^\]\[]*)\]\(([^()\s]+)\)")
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:|//|#", re.I)


class DescriptionHook(MetadataHookInterface):
    """Gives `readme`, which pyproject.toml calls dynamic."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        urls = {name.lower(): address for name, address in metadata.get("urls", {}).items()}
        address = next((urls[name] for name in _ENTRIES if name in urls), None)
        metadata["readme"] = {"content-type": "text/markdown", "text": described(text, address)}


def described(text: str, repository: str | None) -> str:
    """`text` (Markdown) with no relative link outside of code. `repository`: the address of its root, on a host that
    shows files at `blob/HEAD/` and gives them at `raw/HEAD/`, as GitHub, Gitea and Forgejo do."""

    def replaced(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        if _ABSOLUTE.match(target):
            return match[0]
        if repository is None:
            return "" if picture else words
        root = f"{repository.rstrip('/')}/{'raw' if picture else 'blob'}/HEAD/"
        return f"{picture}[{words}]({urljoin(root, target)})"

    parts = _FENCED.split(text)
    return "".join(part if number % 2 else _LINK.sub(replaced, part) for number, part in enumerate(parts))
