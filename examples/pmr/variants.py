"""The compared models: the plain classifier, and the same with RegBN put in by a rules file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from errors import ExampleError
from model import factory
from torch import nn

from regbn_surgery import Rules, RulesError, regbnify

SHIPPED = Path(__file__).parent / "rules"


@dataclass(frozen=True)
class Variant:
    """`name` also names the folder of its runs; `rules`: a file, the name of a preset, None for the model as it is."""

    name: str
    rules: Path | str | None

    @property
    def fingerprint(self) -> str:
        """What a resumed run must share: the content of the rules, wherever the file lies."""
        if self.rules is None:
            return "none"
        content = self.rules.read_bytes() if isinstance(self.rules, Path) else _preset(self.rules)
        return f"{self.name} ({hashlib.sha256(content).hexdigest()[:12]})"

    def build(self, seed: int) -> nn.Module:
        """A new model. Equal seeds give all variants equal initial weights; no global random state is changed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, example_inputs = factory()
            if self.rules is None:
                return model
            return regbnify(model, self.rules, example_inputs)


def find_variant(name: str) -> Variant:
    """ "none", rules that ship with the example ("early", "late"), a rules file, or a preset of the package by name.

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
        try:
            _preset(name)
        except RulesError as error:
            names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.yaml")))
            raise ExampleError(f"no rules {name!r}: those that ship are: {names}; {error}") from error
        return Variant(name, name)
    if path.stem == "none":
        raise ExampleError(f"{path}: call it something else, 'none' is the model without RegBN.")
    return Variant(path.stem, path)


def _preset(name: str) -> bytes:
    """What a preset says, in one form. Raises `RulesError`, with the names that there are."""
    return json.dumps(Rules.load(name).to_dict(), sort_keys=True).encode()


def find_variants(names: Sequence[str]) -> list[Variant]:
    """Several of `find_variant`; two that would write into the same folder are refused."""
    variants = [find_variant(name) for name in dict.fromkeys(names)]
    for variant in variants:
        if sum(v.name == variant.name for v in variants) > 1:
            raise ExampleError(f"two of the rules to compare are called {variant.name!r}: rename one file.")
    return variants
