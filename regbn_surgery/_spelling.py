"""Names in messages: which known one a misspelt one is near to, and lists of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean `concat`?` or nothing, to be put at the end of a sentence."""
    near = nearest(word, known)
    return "" if near is None else f"; did you mean `{near}`?"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one is near to, if there is one.

    A name that differs in upper and lower case alone comes first, then names that are near without regard to case.
    """
    names = list(known)
    by_lower: dict[str, list[str]] = {}
    for name in names:
        by_lower.setdefault(name.lower(), []).append(name)
    near = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    if not near:
        return None
    return max(by_lower[near[0]], key=lambda name: difflib.SequenceMatcher(None, word, name).ratio())


def listing(names: Iterable[str], limit: int = 12) -> str:
    """`a`, `b` and `c`, cut after `limit`."""
    quoted = [f"`{name}`" for name in names]
    if not quoted:
        return "none"
    if len(quoted) > limit:
        return ", ".join(quoted[:limit]) + f" and {len(quoted) - limit} more"
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " and " + quoted[-1]
