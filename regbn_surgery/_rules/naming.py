"""How the content of a branch is written: `video`, and `video+audio` where it carries both, in tables and in rules.

What the tables print is accepted in a rules file as it stands there. A rule may name a part of what a branch carries,
too (`video` for `video+audio`), and the order does not matter.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def home_name(home: Sequence[str]) -> str:
    """One name for all that a branch carries: `video+audio`."""
    return "+".join(home)


def parts_of(name: str, known: Collection[str]) -> tuple[str, ...] | None:
    """The modalities among `known` that a name is made of; None where it is no name of them.

    A modality may have a plus in its own name: `a+b` is that one if there is one, else `a` and `b`.
    """
    if name in known:
        return (name,)
    places = (index for index, letter in enumerate(name) if letter == "+")
    for place in places:
        head, rest = name[:place].strip(), parts_of(name[place + 1 :].strip(), known)
        if head in known and rest is not None:
            return tuple(dict.fromkeys((head, *rest)))
    return None


def names_part(name: str, home: Sequence[str]) -> bool:
    """Whether a branch carries everything that the name says."""
    return parts_of(name, home) is not None


def names_all(name: str, home: Sequence[str]) -> bool:
    """Whether the name says everything that a branch carries."""
    return set(parts_of(name, home) or ()) == set(home)


def unknown_part(name: str, known: Collection[str]) -> str:
    """The first piece of a name that is no modality: what a person has misspelt."""
    return next((piece.strip() for piece in name.split("+") if piece.strip() not in known), name)
