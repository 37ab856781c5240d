"""From a decision to the sites that follow from it: which tensor is f, which g, and with what options.

What stands in the way of any of them is collected, with the rule that wants it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from .._errors import PlanError
from .._rules import references
from .._rules.checks import SIZES
from .._rules.document import Rules
from .._rules.problems import did_you_mean, listing
from .._rules.schema import Rule
from .._types import FusionPoint, PlannedSite, Reduce, Replace, Side
from .direction import directed_sites
from .facts import Facts, below, mark_causal
from .faults import Fault, Order
from .hindrances import (
    causal_problems,
    cycle_problems,
    gate_problems,
    obstacles,
    option_problems,
    size_problems,
    too_large,
    unknown_layout,
)
from .padding import Chooser


class PairSides(NamedTuple):
    """A pair of points, found: where RegBN would go, what it takes, and whether one is computed from the other."""

    host: str
    f: Side
    g: Side
    g_needs_f: bool = False
    f_needs_g: bool = False


#: Finds a pair by its references ("input:gray", "module:audio.layer1") and by which side is replaced. Raises PlanError.
ResolvePair = Callable[[str, str, Replace], PairSides]


class Placer:
    """Collects planned sites and what stands in their way."""

    def __init__(self, rules: Rules, order: Mapping[str, int], resolve: ResolvePair | None, facts: Facts) -> None:
        self.rules = rules
        self.order = order  # rank of each modality
        self.resolve = resolve
        self.facts = facts
        self.sites: list[PlannedSite] = []
        self.problems: list[str] = []
        self.findings: list[str] = []  # what matched nothing
        self.refused: dict[str, list[str]] = {}  # by point, why RegBN cannot go there
        self.counted: set[tuple[str, str]] = set()  # sides (path of a RegBN, "f" or "g") whose padding is to count
        self._names: set[tuple[str, str]] = set()

    def at_point(self, point: FusionPoint, order: Order) -> None:
        chosen, problems = directed_sites(point, *order.direction, order.all_pairs, self.order)
        at = f" at `{point.id}`"
        if problems:
            self.problems += self._told(order, at, problems)
            return
        if not chosen:
            note = f": {point.note}" if point.note else ""
            fault = Fault(f"no place for RegBN is known there{note}; leave it out with a rule `action: skip`")
            self._refuse(point.id, self._told(order, at, [fault]))
        for found, f, g in chosen:
            layer = self.facts.layers.get((point.id, point.sites.index(found)), "")
            site = (found.by_rows() if self._said(order, "samples") == "rows" else None) or found
            gated = gate_problems(site, f, g)
            self.problems += self._told(order, at, gated)
            hindered = [] if gated else obstacles(site, f, g)
            if hindered:
                self._refuse(point.id, self._told(order, at, hindered))
            if gated or hindered:
                continue
            reduce = self._said(order, "reduce") or site.reduce
            self._add(order, site.host, site.sides[f], site.sides[g], reduce, layer, point=point.id, site=site)

    def _told(self, order: Order, at: str, faults: Iterable[Fault]) -> list[str]:
        """Faults as sentences, each at the key of the rules file that it is about."""
        return [f"{order.place_of(fault, self.rules)}: rule `{order.rule.id}`{at}: {fault.text}" for fault in faults]

    def _refuse(self, point: str | None, problems: list[str]) -> None:
        """RegBN cannot go to a point: an error where the rules want all, or name the place by a pair."""
        if point is None or self.rules.wants_all:
            self.problems += problems
        else:
            self.refused.setdefault(point, []).extend(problems)

    def at_pair(self, index: int, rule: Rule) -> None:
        assert rule.pair is not None
        order = Order(index, rule)
        if self.resolve is None:
            self.problems += self._told(order, "", [Fault("pairs cannot be resolved without the model")])
            return
        pairs = references.expand(rule.pair.f, rule.pair.g, self.facts.references)
        allows_none = rule.expect is not None and rule.expect.min == 0
        if not pairs and not allows_none:
            letter = "f" if references.is_pattern(rule.pair.f) else "g"
            fault = Fault(self._no_reference(rule.pair.f, rule.pair.g), (("pair", letter),))
            self.findings += self._told(order, " matches nothing", [fault])
        elif rule.expect is not None and not within(len(pairs), rule.expect.min, rule.expect.max):
            self.problems.append(
                f"{self.rules.where('rules', index, 'expect')}: rule `{rule.id}` expects "
                f"{count(rule.expect.min, rule.expect.max, 'pair')}, but makes {len(pairs)}: "
                + listing(f"{f} with {g}" for f, g in pairs)
            )
        for pair in pairs:
            self._pair(order, pair)

    def _no_reference(self, f: str, g: str) -> str:
        pattern = f if references.is_pattern(f) else g
        found = [name for name in self.facts.references if name.startswith("module:")] or self.facts.references
        literal = re.match(r"[\w:.-]*", pattern.removeprefix("re:").replace("\\", ""))
        near = did_you_mean(literal[0] if literal else pattern, self.facts.references)
        return f"no input or called module is `{pattern}`{near} (some that are: {listing(found, limit=8)})"

    def _pair(self, order: Order, pair: tuple[str, str]) -> None:
        assert self.resolve is not None
        try:
            if pair[0] == pair[1]:
                raise PlanError(f"f and g are both `{pair[0]}`; nothing would be left of it")
            found = self.resolve(*pair, self._replace(order))
        except PlanError as error:
            self.problems += self._told(order, "", [Fault(str(error), _letters(str(error), pair))])
            return
        f, g = mark_causal(found.f, self.facts), mark_causal(found.g, self.facts)
        if self._said(order, "samples") == "rows":
            f, g = f.by_rows() or f, g.by_rows() or g
        cycle = cycle_problems(pair, found.g_needs_f, found.f_needs_g, self._replace(order))
        self.problems += self._told(order, "", cycle)
        unknown = [*unknown_layout(f, pair[0], "f"), *unknown_layout(g, pair[1], "g")]
        if unknown:
            self.problems += self._told(order, "", unknown)
            return
        usual: Reduce = "mean" if f.layout.sequence or g.layout.sequence else "flatten"
        reduce = self._said(order, "reduce") or usual
        self._add(order, found.host, f, g, reduce, pair=pair)

    def _said(self, order: Order, name: str) -> Any:
        """What the most particular of override, rule and defaults says, or None."""
        layers = (order.override, order.rule, self.rules.defaults)
        values = (getattr(layer, name) for layer in layers if layer is not None)
        return next((value for value in values if value is not None), None)

    def _replace(self, order: Order) -> Replace:
        said: Replace | None = self._said(order, "replace")
        return said or "both"

    def _add(self, order: Order, host: str, f: Side, g: Side, reduce: Reduce, layer: str = "", **place: Any) -> None:
        """`layer`: the path of the layer that keeps RegBN in place of the host."""
        layers = (self.rules.defaults, order.rule, order.override)
        merged = {name: value for layer in layers if layer is not None for name, value in layer.regbn.items()}
        stated = {name: merged.pop(name) for name in SIZES if name in merged}
        fit = self._said(order, "fit") or ("running" if f.causal else None)
        if fit is not None:
            merged["fit"] = fit
        name = self._name(host, order.rule.id)
        path = self.facts.kept_at(layer or host, name)
        site = PlannedSite(
            name=name,
            host=host,
            rule=order.rule.id,
            f=f,
            g=g,
            reduce=reduce,
            replace=self._replace(order),
            options=merged,
            methods=self._said(order, "methods") or (),
            missing=self._said(order, "missing") or "warn",
            kept_at="" if path == below(host, name) else path,
            **{"point": None, **place},
        )
        at = f" at `{site.point}`" if site.point is not None else f" for {' with '.join(site.pair or ())}"
        asked = None if self.facts.masks_at is None else self.facts.masks_at(site)
        padding = Chooser(site, self._said(order, "mask"), asked)
        if asked is not None:
            site = replace(site, padding=tuple(padding.found.values()))
        self.counted |= {(site.path, letter) for letter in padding.off}
        allowed = bool(self._said(order, "allow_noncausal"))
        wrong = [*size_problems(site, stated), *option_problems(site), *causal_problems(site, allowed=allowed)]
        wrong += padding.faults
        hindered = [] if wrong else too_large(site)
        self.problems += self._told(order, at, wrong)
        if hindered:
            self._names.discard((host, site.name))
            self._refuse(site.point, self._told(order, at, hindered))
        else:
            self.sites.append(site)

    def _name(self, host: str, rule_id: str) -> str:
        base = "regbn_" + re.sub(r"\W", "_", rule_id, flags=re.ASCII)
        name, number = base, 0
        while (host, name) in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add((host, name))
        return name


def _letters(text: str, pair: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """Which of a pair an error is about: the one that it names first."""
    names = {"f": pair[0].partition(":")[2], "g": pair[1].partition(":")[2]}
    places = {letter: found.start() for letter, name in names.items() if (found := _quoted(name).search(text))}
    return tuple(("pair", letter) for letter in sorted(places, key=lambda letter: (places[letter], letter)))


def _quoted(name: str) -> re.Pattern[str]:
    return re.compile(rf"""['`](?:\w+:)?{re.escape(name)}['`]""")


def within(number: int, low: int, high: int | None) -> bool:
    """Whether `expect` holds."""
    return low <= number and (high is None or number <= high)


def count(low: int, high: int | None, noun: str = "") -> str:
    """What `expect` says, in words."""
    tail = f" {noun}{'' if high == 1 else 's'}" if noun else ""
    if high is None:
        return f"at least {low}{tail}"
    return f"exactly {low}{tail}" if low == high else f"{low} to {high}{tail}"
