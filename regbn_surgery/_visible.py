"""Text as a terminal may have it: names of modules and inputs come from anywhere, and terminals obey what they read."""

from __future__ import annotations

import re

#: Control characters but for line ends and tabs, marks that change the direction of text, lines by other names, halves
#: of surrogate pairs.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with every character that would act and not show spelled out: `\\x1b[31m`."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
