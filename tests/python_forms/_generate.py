"""Make a model and its oracle from a seed: the source of both, the rules, and the ways to call them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from regbn_surgery import Inputs, RegBN

from ._frames import FRAMES, OUTSIDES, write_results
from ._writer import HIDDEN, WIDTHS, Way, Writer

HOMES = ["file", "file", "file", "prompt", "prompt with linecache"]
LATER = ["the same model", "the same model", "a deep copy", "a pickle in a fresh import", "two threads"]


@dataclass(frozen=True)
class Generated:
    """One model: what is written, and what is done with it."""

    seed: int
    forms: tuple[str, ...]
    source: str
    oracle: str
    root: str
    home: str
    later: str
    ways: tuple[Way, ...]
    rules: dict[str, Any]
    options: dict[str, Any]
    sites: tuple[str, ...]
    third: bool

    def __str__(self) -> str:
        forms = "\n".join(f"    {form}" for form in self.forms)
        return f"seed {self.seed}; source in a {self.home}; {self.later}\n{forms}\n{self.rules}\n\n{self.source}"

    @property
    def name(self) -> str:
        return f"form_{self.seed}"

    def example(self) -> Inputs:
        given = random_inputs(4, self.seed, self.third)
        return Inputs(**given) if self.seed % 2 else Inputs(*given.values())

    def put_in_by_hand(self, oracle: nn.Module) -> None:
        """Give the oracle's `Net` the RegBN modules that its source calls."""
        (net,) = (module for module in oracle.modules() if type(module).__name__ == "Net")
        for name in self.sites:
            net.add_module(name, RegBN(HIDDEN, HIDDEN, [], [], **self.options))


def random_inputs(batch: int, seed: int, third: bool) -> dict[str, torch.Tensor]:
    """Return the tensors of one call, by the names of forward's parameters."""
    generator = torch.Generator().manual_seed(seed)
    names = ("a", "b", "c") if third else ("a", "b")
    return {name: torch.randn(batch, WIDTHS[name], generator=generator) for name in names}


def generate(seed: int) -> Generated:
    """Make the model of a seed. The oracle makes the same choices, since it starts from the same random numbers."""
    plain, oracle = _written(seed, oracle=False), _written(seed, oracle=True)
    assert plain.forms == oracle.forms, "the oracle made other choices"
    options = {
        "momentum": 0.3,
        "normalize_output": plain.chance(0.5),
        "normalize_input": plain.chance(0.3),
    }
    options["affine"] = options["normalize_output"] and plain.chance(0.5)
    f, g = sorted(plain.sides, key=plain.sides.__getitem__)
    rule: dict[str, Any] = {
        "id": "late",
        "match": {"kind": list(plain.kinds), "between": ["a", "b"]},
        "normalize": f,
        "against": g,
        "regbn": options,
    }
    replace = plain.replace or ("f" if plain.chance(0.25) else "both")
    if replace == "f" and plain.replace is None:
        rule["replace"] = "f"
    home, later = plain.random.choice(HOMES), plain.random.choice(LATER)
    if "pickle" in later and (home != "file" or not plain.pickles):
        later = "the same model"
    return Generated(
        seed=seed,
        forms=tuple(plain.forms),
        source=plain.source(),
        oracle=oracle.source(),
        root=plain.root,
        home=home,
        later=later,
        ways=(Way(), *plain.ways),
        rules={"version": 1, "rules": [rule, *({**rule, **more} for more in plain.more_rules)]},
        options={**options, "replace": replace},
        sites=tuple(plain.sites),
        third=plain.third,
    )


def _written(seed: int, oracle: bool) -> Writer:
    writer = Writer(seed, oracle)
    writer.choose("frame", FRAMES)(writer)
    write_results(writer)
    writer.choose("around", OUTSIDES)(writer)
    return writer


@dataclass(frozen=True)
class Step:
    """One call in a schedule."""

    way: Way
    batch: int = 4
    train: bool = True
    gradients: str = "on"  # "on", "off", "inference"
    seed: int = 0
    third: bool = False


def schedule(generated: Generated, first_seed: int = 1) -> list[Step]:
    """Return calls as in the example, so that W moves, and then the other ways between calls of the first."""
    seeds = itertools.count(1000 * generated.seed + first_seed)

    def step(way: Way, batch: int, train: bool, gradients: str = "on") -> Step:
        return Step(way, batch, train, gradients, next(seeds), generated.third)

    usual = generated.ways[0]
    steps = [step(usual, 4, True), step(usual, 9, True)]
    for way in generated.ways:
        steps += [step(way, 7, False), step(way, 6, True), step(way, 3, False, "inference")]
    return [*steps, step(usual, 5, True, "off"), step(generated.ways[-1], 4, True), step(usual, 2, False, "off")]
