"""Patterns for dotted names: globs by default, `re:` for a regular expression that must match the whole name.

Both go by RE2, which does not backtrack: whatever a rules file says, a match takes time in proportion to the name.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Protocol

import re2

_LONGEST = 500


class Pattern(Protocol):
    """A compiled pattern: what is used of it."""

    @property
    def groups(self) -> int: ...
    @property
    def groupindex(self) -> Mapping[str, int]: ...
    def fullmatch(self, text: str) -> Any: ...


class PatternError(ValueError):
    """A glob or regular expression that cannot be read; the message says what is wrong with it."""


@functools.lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> Pattern:
    """Compile a glob or `re:` pattern, to be used with `fullmatch`.

    In a glob `*` stands for any text within one segment, `?` for one character of it, and `**` (a segment of
    its own) for any number of whole segments, none included: `fusion.**` matches `fusion`, `fusion.a` and
    `fusion.a.b`; `**` matches everything, the root's empty path included.
    """
    if len(pattern) > _LONGEST:
        raise PatternError(f"a pattern may have at most {_LONGEST} characters; this one has {len(pattern)}")
    if pattern.startswith("re:"):
        return _regular_expression(pattern[3:])
    return _compiled(_glob(pattern))


def matches(pattern: str, name: str) -> bool:
    """Whether the whole of `name` matches `pattern`."""
    return compile_pattern(pattern).fullmatch(name) is not None


def _regular_expression(text: str) -> Pattern:
    try:
        return _compiled(text)
    except re2.error as error:
        what = error.args[0] if error.args else ""
        said = what.decode(errors="replace") if isinstance(what, bytes) else str(what)
        said = said.removesuffix(f": {text}")
        hint = " (RE2 has no look-around and no back-references)" if "(?" in text or "escape" in said else ""
        raise PatternError(f"bad regular expression `{text}`: {said[:_TOLD]}{hint}") from error
    except UnicodeEncodeError as error:
        raise PatternError(f"bad regular expression {text!r}: {error.reason}") from error


#: How much of an engine's message is told; it repeats the whole expression.
_TOLD = 80


def _compiled(text: str) -> Pattern:
    options = re2.Options()
    options.log_errors = False  # it would write to the terminal by itself
    pattern: Pattern = re2.compile(text, options=options)
    return pattern


def _glob(pattern: str) -> str:
    if pattern == "":
        return ""  # the root itself
    segments = pattern.split(".")
    for segment in segments:
        if segment == "":
            raise PatternError(f"bad glob `{pattern}`: a segment between dots is empty")
        if "**" in segment and segment != "**":
            raise PatternError(f"bad glob `{pattern}`: `**` must be a whole segment, as in `a.**.b`")
        if set(segment) & set("[](){}|^$+\\"):
            raise PatternError(
                f"bad glob `{pattern}`: only `*`, `?` and `**` are special; for more write `re:` and a "
                "regular expression"
            )
    # `**` swallows whole segments with their dots, so the dot before or after it goes with it.
    out = ""
    before_needs_dot = False
    for index, segment in enumerate(segments):
        if segment == "**":
            if index > 0 and segments[index - 1] == "**":
                continue
            last = all(rest == "**" for rest in segments[index:])
            if last:
                out += r"(?:\..+)?" if before_needs_dot else r".*"
            else:
                out += r"(?:\.[^.]+)*" if before_needs_dot else r"(?:[^.]+\.)*"
            continue
        out += (r"\." if before_needs_dot else "") + _segment(segment)
        before_needs_dot = True
    return out


def _segment(segment: str) -> str:
    if segment == "*":
        return "[^.]+"  # one segment, not none
    table = {"*": "[^.]*", "?": "[^.]"}
    return "".join(table.get(character) or re2.escape(character) for character in segment)
