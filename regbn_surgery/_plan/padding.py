"""Which argument marks the padding of which side of a planned site: what the rules say of it, else what is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from .._rules.naming import home_name, names_all, names_part
from .._rules.problems import Path, did_you_mean
from .._rules.schema import ANY_SIDE, MaskSpec
from .._types import HostArgument, PaddingMask, PlannedSite, Side
from .facts import SiteMasks
from .faults import Fault

Letter = Literal["f", "g"]
LETTERS: tuple[Letter, Letter] = ("f", "g")


class Chooser:
    """What marks the padding of one site. `found` is one mask for each side that has one, `off` the sides whose mask
    the rules switch off, `faults` what the rules say that cannot be."""

    def __init__(self, site: PlannedSite, said: Mapping[str, MaskSpec] | None, masks: SiteMasks | None) -> None:
        self.site = site
        self.masks = masks or SiteMasks("")
        self.sides: dict[Letter, Side] = {"f": site.f, "g": site.g}
        self.off: set[Letter] = set()
        self.faults: list[Fault] = []
        averaged = site.reduce == "mean"
        self.found = {mask.side: mask for mask in self.masks.automatic} if averaged else {}
        said = said or {}
        named = {modality: spec for modality, spec in said.items() if not spec.is_none}
        first = next(iter(named or said), ANY_SIDE)
        if named and not averaged:
            self._fault(first, self._flat(named[first]))
        elif named and masks is None:
            self._fault(first, "a mask cannot be found without the model")
        elif said and not any(map(self._letters, said)):
            meeting = " and ".join(home_name(side.home) for side in self.sides.values())
            self._fault(first, f"`{first}` has no part in it: {meeting} meet there")
        elif averaged:
            for modality in said.keys() - named.keys():
                self._switch_off(modality)
            for modality, spec in named.items():
                self._choose(modality, spec)

    def _switch_off(self, modality: str) -> None:
        for letter in self._letters(modality):
            self.off.add(letter)
            self.found.pop(letter, None)

    def _letters(self, modality: str) -> list[Letter]:
        """The sides that a modality names; the one that holds nothing else, where both hold it."""
        if modality == ANY_SIDE:
            return list(LETTERS)
        named = [letter for letter in LETTERS if names_part(modality, self.sides[letter].home)]
        exact = [letter for letter in named if names_all(modality, self.sides[letter].home)]
        return exact if len(exact) == 1 else named

    def _choose(self, modality: str, spec: MaskSpec) -> None:
        letters = self._letters(modality)
        if not letters:
            return
        argument = self._argument(spec.argument)
        if argument is None:
            self._fault(modality, self._unknown(spec.argument), "argument")
            return
        fits = [letter for letter in letters if self._fits(argument, letter)]
        if argument.shape is None:
            self._fault(modality, self._not_given(argument), "argument")
        elif not fits:
            self._fault(modality, self._no_fit(argument, letters), "argument")
        elif len(fits) > 1:
            self._fault(modality, self._both(argument))
        else:
            leaves_out = self.masks.meaning(argument) if spec.marks is None else spec.marks == "padding"
            if leaves_out is None:
                self._fault(modality, self._no_meaning(argument, self.sides[fits[0]]), "argument")
            else:
                self.found[fits[0]] = PaddingMask(fits[0], argument.name, leaves_out)

    def _argument(self, name: str) -> HostArgument | None:
        """The argument of the host by that name; else the one that is the model's input of that name."""
        arguments = self.masks.arguments()
        by_name = (argument for argument in arguments if argument.name == name)
        return next(by_name, next((argument for argument in arguments if name in argument.inputs), None))

    def _fits(self, argument: HostArgument, letter: Letter) -> bool:
        if not self.masks.open[LETTERS.index(letter)] or len(self.sides[letter].spatial_shape) != 1:
            return False
        return argument.shape is not None and fits(argument.shape, self.sides[letter])

    # -- what is wrong, in words --------------------------------------------------------------------------------------

    def _fault(self, modality: str, text: str, *inside: str) -> None:
        key: Path = ("mask",) if modality == ANY_SIDE else ("mask", modality)
        self.faults.append(Fault(text, ((*key, *inside), key)))

    def _flat(self, spec: MaskSpec) -> str:
        return (
            f"`{spec.argument}` marks padding for the means over positions, but with `reduce: flatten` each position "
            "has rows of its own; write `reduce: mean`, or remove `mask`"
        )

    def _unknown(self, name: str) -> str:
        arguments = self.masks.arguments()
        known = [argument.name for argument in arguments if not argument.content]
        could = [
            f"`{argument.name}` for {self._home(letter)}"
            for letter in LETTERS
            for argument in arguments
            if self._fits(argument, letter) and not argument.content
        ]
        rest = f"of the shape of a side: {', '.join(could)}" if could else "none has the shape of a side"
        return (
            f"`{name}` is no argument of {self.masks.host}, in which the fusion happens, nor an input of the model "
            f"that it is given as it is{did_you_mean(name, known)} (its arguments, {rest})"
        )

    def _not_given(self, argument: HostArgument) -> str:
        return (
            f"{self.masks.host} is not given `{argument.name}` in the example, so that padding would count. Use an "
            "example in which it is; if the model never hands it on, that takes a change of its code"
        )

    def _both(self, argument: HostArgument) -> str:
        lines = " or ".join(f"`mask: {{{self._home(letter)}: {argument.name}}}`" for letter in LETTERS)
        return f"f and g have equally many positions, so the shape of `{argument.name}` does not tell its side; {lines}"

    def _no_fit(self, argument: HostArgument, letters: list[Letter]) -> str:
        batch = rows(self.sides[letters[0]])[:1]
        shape = "" if argument.shape is None else f" of shape {_spelt(argument.shape, batch)}"
        return f"`{argument.name}`{shape} cannot mark padding there: " + "; ".join(map(self._wanted, letters))

    def _wanted(self, letter: Letter) -> str:
        side, who = self.sides[letter], f"{letter} ({self._home(letter)})"
        if not self.masks.open[LETTERS.index(letter)]:
            return f"{who} is taken without padding"
        if len(side.spatial_shape) != 1:
            return f"{who} has no positions" if not side.spatial_shape else f"{who} has positions along several axes"
        return f"a mask over {who} has shape {_spelt(rows(side), rows(side)[:1])}"

    def _no_meaning(self, argument: HostArgument, side: Side) -> str:
        home = home_name(side.home)
        return (
            f"neither its name nor its use says whether 1 (or true) in `{argument.name}` is content or padding; write "
            f"`mask: {{{home}: {{argument: {argument.name}, marks: content}}}}` or `marks: padding`"
        )

    def _home(self, letter: Letter) -> str:
        return home_name(self.sides[letter].home)


def _spelt(shape: tuple[int, ...], batch: tuple[int, ...]) -> str:
    """`[B, 7]`: how many samples there are in a run does not count."""
    first = "B" if shape[:1] == batch else str(shape[0]) if shape else ""
    return f"[{', '.join((first, *map(str, shape[1:])))}]"


def rows(side: Side) -> tuple[int, ...]:
    """The shape of a mask over the positions of a side, [B, L]."""
    batch = side.layout.batch_dim
    return () if batch is None else (side.shape[batch], *side.spatial_shape)


def fits(shape: tuple[int, ...], side: Side) -> bool:
    """Whether a tensor may be a mask over the positions of a side: [B, L], or spread over heads and queries."""
    wanted = rows(side)
    if len(wanted) != 2 or (side.partly and len(shape) != 2):
        return False
    return len(shape) >= 2 and (shape[0], shape[-1]) == wanted


def candidates(masks: SiteMasks, side: Side, letter: Letter) -> tuple[HostArgument, ...]:
    """The host's arguments that look like a mask over the positions of a side; one of its very shape before others."""
    if not masks.open[LETTERS.index(letter)]:
        return ()
    found = [
        argument
        for argument in masks.arguments()
        if any("mask" in name.lower() for name in (argument.name, *argument.inputs))
        and not argument.content
        and argument.shape is not None
        and fits(argument.shape, side)
    ]
    return tuple(sorted(found, key=lambda argument: argument.shape != rows(side)))
