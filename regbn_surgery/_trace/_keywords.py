"""Modules may have names that Python cannot write after a dot: `self.global`. torch.fx writes them so all the same."""

from __future__ import annotations

import keyword
import re

_ATTRIBUTE = re.compile(rf"\.({'|'.join(keyword.kwlist)})\b")


def without_keywords(code: str) -> str:
    """Generated code with `getattr(self, "global")` in place of `self.global`."""
    position = 0
    while (found := _ATTRIBUTE.search(code, position)) is not None:
        start = _start_of(code, found.start())
        base = code[start : found.start()]
        position = found.end()
        if base.startswith(("self", "getattr(self")):
            code = f'{code[:start]}getattr({base}, "{found[1]}"){code[found.end() :]}'
            position = start
    return code


def _start_of(code: str, end: int) -> int:
    """Where the chain of attributes and `getattr` calls begins that ends before `end`."""
    start = end
    while True:
        if code[start - 1 : start] == ")":
            depth = 0
            while start > 0:
                start -= 1
                depth += {")": 1, "(": -1}.get(code[start], 0)
                if depth == 0:
                    break
        while start > 0 and (code[start - 1].isalnum() or code[start - 1] == "_"):
            start -= 1
        if code[start - 1 : start] != ".":
            return start
        start -= 1
