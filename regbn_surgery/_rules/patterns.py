"""Patterns for dotted names: globs by default, `re:` for a regular expression that must match the whole name."""

from __future__ import annotations

import functools
import re
import warnings

_LONGEST = 500


class PatternError(ValueError):
    """A glob or regular expression that cannot be read; the message says what is wrong with it."""


@functools.lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a glob or `re:` pattern, to be used with `fullmatch`.

    In a glob `*` stands for any text within one segment, `?` for one character of it, and `**` (a segment of
    its own) for any number of whole segments, none included: `fusion.**` matches `fusion`, `fusion.a` and
    `fusion.a.b`; `**` matches everything, the root's empty path included.
    """
    if len(pattern) > _LONGEST:
        raise PatternError(f"a pattern may have at most {_LONGEST} characters; this one has {len(pattern)}")
    if pattern.startswith("re:"):
        return _regular_expression(pattern[3:])
    return re.compile(_glob(pattern))


def matches(pattern: str, name: str) -> bool:
    """Whether the whole of `name` matches `pattern`."""
    return compile_pattern(pattern).fullmatch(name) is not None


def _regular_expression(text: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():  # of what a later Python may read otherwise: this one reads it as it does
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(text)
    except re.error as error:
        where = f" at position {error.pos}" if error.pos is not None else ""
        raise PatternError(f"bad regular expression `{text}`: {error.msg}{where}") from error
    except (RecursionError, OverflowError) as error:
        raise PatternError(f"bad regular expression `{text}`: too deep or too large a repetition") from error


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
    return "".join(table.get(character) or re.escape(character) for character in segment)
