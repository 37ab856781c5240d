"""The compared models: the plain classifier, and the same with RegBN put in by a rules file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from errors import ExampleError
from model import factory
from torch import nn

SHIPPED = Path(__file__).parent / "rules"


@dataclass(frozen=True)
class Variant:
    """`name` also names the folder of its runs; `rules` is None for the model as it is."""

    name: str
    rules: Path | None

    @property
    def fingerprint(self) -> str:
        """What a resumed run must share: the content of the rules, wherever the file lies."""
        if self.rules is None:
            return "none"
        return f"{self.name} ({hashlib.sha256(self.rules.read_bytes()).hexdigest()[:12]})"

    def build(self, seed: int) -> nn.Module:
        """A new model. Equal seeds give all variants equal initial weights; no global random state is changed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, example_inputs = factory()
            if self.rules is None:
                return model
            from regbn_surgery import regbnify

            return regbnify(model, self.rules, example_inputs)


def find_variant(name: str) -> Variant:
    """ "none", the name of rules that ship with the example ("early", "late"), or the path of a rules file.

    Raises:
        ExampleError: it is none of these.
    """
    if name == "none":
        return Variant("none", None)
    shipped = SHIPPED / f"{name}.yaml"
    if shipped.is_file():
        return Variant(name, shipped)
    path = Path(name)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.yaml")))
        raise ExampleError(f"no rules {name!r}: there is no such file, and those that ship are: {names}.")
    if path.stem == "none":
        raise ExampleError(f"{path}: call it something else, 'none' is the model without RegBN.")
    return Variant(path.stem, path)


def find_variants(names: Sequence[str]) -> list[Variant]:
    """Several of `find_variant`; two that would write into the same folder are refused."""
    variants = [find_variant(name) for name in dict.fromkeys(names)]
    for variant in variants:
        if sum(v.name == variant.name for v in variants) > 1:
            raise ExampleError(f"two of the rules to compare are called {variant.name!r}: rename one file.")
    return variants
