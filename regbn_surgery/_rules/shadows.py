"""Rules that can never decide anything, because an earlier rule or an exclude takes all that they match.

Seen without a model: every key of the earlier match is implied by the later one's. What only a model can show
(two different globs that match the same modules) is told when the rules are applied.
"""

from __future__ import annotations

from collections.abc import Iterator

from .._types import NEVER_BY_DEFAULT
from .problems import Problem
from .schema import Document, Match, Rule

_EVERYTHING = ("**", "re:.*")


def shadowed(document: Document) -> Iterator[Problem]:
    """One problem for each rule that is wholly shadowed."""
    for index, rule in enumerate(document.rules):
        taker = _taker(document, index, rule)
        if taker is not None:
            yield Problem(
                ("rules", index, "match"),
                f"{taker} already takes every fusion point that this rule matches, so it would never apply; "
                + ("narrow that" if taker.startswith("exclude") else "put this one first, narrow the other")
                + ", or remove this one",
                at_key=True,
            )


def _taker(document: Document, index: int, rule: Rule) -> str | None:
    if rule.match is None:
        return None
    for position, exclude in enumerate(document.exclude):
        if covers(exclude, rule.match, named=False):
            return f"exclude[{position}]"
    for earlier in document.rules[:index]:
        if earlier.match is not None and covers(earlier.match, rule.match, named=earlier.action != "skip"):
            return f"rule `{earlier.id}`"
    return None


def covers(first: Match, second: Match, *, named: bool) -> bool:
    """Whether every point that `second` matches is matched by `first` too.

    `named`: `first` passes over kinds and levels that are off by default unless it names them, as rules do that
    normalise.
    """
    if first.nth is not None and first != second:
        return False  # counted among what the other keys leave
    if named and _off_by_default(second) and first != second:
        return False
    for key in ("kind", "level"):
        ours, theirs = getattr(first, key), getattr(second, key)
        if ours is not None and (theirs is None or not set(theirs) <= set(ours)):
            return False
    for key in ("owner", "point"):
        ours, theirs = getattr(first, key), getattr(second, key)
        anywhere = ours is None or bool(set(ours) & set(_EVERYTHING))
        if not anywhere and (theirs is None or not set(theirs) <= set(ours)):
            return False
    return first.between is None or (second.between is not None and set(first.between) <= set(second.between))


def _off_by_default(match: Match) -> bool:
    kinds = set(match.kind or ()) & NEVER_BY_DEFAULT
    return bool(kinds) or "remeeting" in (match.level or ())
