"""Names in messages: which known one a misspelt one is near to, and lists of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean `concat`?` or nothing, to be put at the end of a sentence."""
    near = nearest(word, known)
    return "" if near is None else f"; did you mean `{near}`?"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one is near to, if there is one.

    Near is what a slip of the hand, a plural, a shortened word or a missing front of a dotted path makes of a name. Of
    several the nearest, and of equally near ones that with the same upper and lower case.
    """
    near = [name for name in known if is_near(word, name)]
    return max(near, key=lambda name: (_ratio(word.lower(), name.lower()), _ratio(word, name)), default=None)


def is_near(word: str, name: str) -> bool:
    """Whether somebody who wrote `word` may have meant `name`: part by part from the end, for dotted paths."""
    ours, theirs = ([part for part in re.split(r"[.:]", text.lower()) if part] for text in (word, name))
    if not ours or not theirs:
        return False
    pairs = zip(reversed(ours), reversed(theirs), strict=False)  # `attn.q` is meant by `encoder.attn.q`
    return all(one == other or _is_slip(one, other) for one, other in pairs)


def _is_slip(word: str, name: str) -> bool:
    short, long = sorted((word, name), key=len)
    if len(short) * 2 < len(long) or _ratio(word, name) < 0.5:  # the rest takes longer
        return False
    words, names = word.split("_"), name.split("_")
    if len(words) == len(names) > 1:  # `left_hidden_states` is mostly, but not nearly, `right_hidden_states`
        return all(one == other or _is_slip(one, other) for one, other in zip(words, names, strict=True))
    if len(short) >= 3 and (short in long or (short[0] == long[0] and _is_shortened(short, long))):
        return True  # `color` for `colored`, `attention` for `cross-attention`, `img` for `image`
    stem = next((i for i, (one, other) in enumerate(zip(word, name, strict=False)) if one != other), len(short))
    if stem > 3 and stem * 4 > len(short) * 3:
        return True  # `modality` for `modalities`
    if len(long) < 6 and stem and _ratio(word, name) >= 0.75:
        return True  # `gery` for `gray`
    return _edits(word, name) <= max(1, len(long) // 4)


def _is_shortened(short: str, long: str) -> bool:
    """Whether letters were left out."""
    letters = iter(long)
    return all(letter in letters for letter in short)


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _edits(one: str, other: str) -> int:
    """How many letters were put in, left out, exchanged for another, or for their neighbour (optimal alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        two_before, before, row = before, row, [i]
        for j, b in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, two_before[j - 2] + 1)
            row.append(cost)
    return row[-1]


def listing(names: Iterable[str], limit: int = 12) -> str:
    """`a`, `b` and `c`, cut after `limit`."""
    quoted = [f"`{name}`" for name in names]
    if not quoted:
        return "none"
    if len(quoted) > limit:
        return ", ".join(quoted[:limit]) + f" and {len(quoted) - limit} more"
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " and " + quoted[-1]
