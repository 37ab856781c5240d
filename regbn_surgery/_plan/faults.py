"""What keeps RegBN from a place, with the keys of the rules file that say it: an error points at those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .._rules.document import Rules
from .._rules.problems import Path
from .._rules.schema import Override, Rule

_DIRECTION = ("normalize", "against")


@dataclass(frozen=True)
class Fault:
    """One thing in the way. `keys` are paths inside a rule, such as ("regbn", "rank"), the most telling first."""

    text: str
    keys: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Order:
    """What is to be done at one point: the rule, with a point's override merged in."""

    index: int
    rule: Rule
    override: Override | None = None
    point: str | None = None

    @property
    def direction(self) -> tuple[str | None, str | None]:
        over = self.override
        if over is not None and (over.normalize or over.against):
            return over.normalize, over.against
        return self.rule.normalize, self.rule.against

    @property
    def all_pairs(self) -> bool:
        return self.rule.pairs == "all" and self.direction == (None, None)

    def place_of(self, fault: Fault, rules: Rules) -> str:
        """`file:line:column` of the key that is wrong; of the rule's `match` or `pair` where no key says it."""
        for key in fault.keys:
            for base, said in self._layers(rules):
                if _says(said, key):
                    return rules.where(*base, *key)
        if self.rule.match is None:
            return rules.where("rules", self.index, "pair")
        return rules.where("rules", self.index, "match", key=True)

    def _layers(self, rules: Rules) -> Iterator[tuple[Path, Mapping[str, Any]]]:
        """What is said about the point and where, the most particular first, as far as it is in force."""
        over = {} if self.override is None else self.override.model_dump(exclude_unset=True)
        rule = self.rule.model_dump(exclude_unset=True)
        if any(key in over for key in _DIRECTION):
            rule = {key: value for key, value in rule.items() if key not in (*_DIRECTION, "pairs")}
        if self.point is not None:
            yield ("overrides", self.point), over
        yield ("rules", self.index), rule
        yield ("defaults",), rules.defaults.model_dump(exclude_unset=True)


def _says(said: Any, key: Path) -> bool:
    for step in key:
        if not isinstance(said, Mapping) or step not in said:
            return False
        said = said[step]
    return True
