"""Rules applied to what inspection found: one decision for every fusion point, and the sites that follow.

A pure function of its arguments: nothing of the model is touched here, and no torch is needed.
All that is wrong is collected and told at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .._errors import NothingMatchedError, PlanError, RulesError
from .._rules.checks import SIZES, unknown_modality
from .._rules.document import Rules
from .._rules.matching import Selection, select, spell_homes
from .._rules.problems import Path, Problem, did_you_mean, listing, render
from .._rules.schema import Override, Rule
from .._types import Decision, FusionPoint, Inspection, Plan, PlannedSite, Reduce, Side
from .direction import directed_sites
from .hindrances import advice, obstacles, option_problems, size_problems, unknown_layout

#: Finds the host of a pair and the tensors to take there: ("input:gray", "input:colored") -> (host, f, g).
ResolvePair = Callable[[str, str], tuple[str, Side, Side]]


def decide(rules: Rules, inspection: Inspection, resolve_pair: ResolvePair | None = None) -> Plan:
    """Apply `rules` to the found fusion points.

    The first rule that matches a point decides it; `skip` and `exclude` are final; overrides by point id come
    last. Rules with `pair` need `resolve_pair`.

    Raises `NothingMatchedError` where a rule, exclude or override selects nothing (a note in the plan instead
    under `strict: warn`), and `PlanError` for whatever else stands in the way, all of it in one message.
    """
    return _Planner(rules, inspection, resolve_pair).run()


@dataclass(frozen=True)
class _Order:
    """What is to be done at one point: the rule, with a point's override merged in."""

    index: int
    rule: Rule
    override: Override | None = None

    @property
    def direction(self) -> tuple[str | None, str | None]:
        over = self.override
        if over is not None and (over.normalize or over.against):
            return over.normalize, over.against
        return self.rule.normalize, self.rule.against

    @property
    def all_pairs(self) -> bool:
        return self.rule.pairs == "all" and self.direction == (None, None)


class _Planner:
    """The state of one `decide`: what is decided so far, and what stands in the way."""

    def __init__(self, rules: Rules, inspection: Inspection, resolve_pair: ResolvePair | None) -> None:
        self.rules = rules
        self.inspection = inspection
        self.resolve_pair = resolve_pair
        self.order = {modality.name: index for index, modality in enumerate(inspection.modalities)}
        self.points = {point.id: point for point in inspection.fusion_points}
        self.decisions: dict[str, Decision] = {}
        self.orders: dict[str, _Order] = {}
        self.selections: list[tuple[Rule, Selection]] = []
        self.findings: list[str] = []
        self.problems: list[str] = []
        self.sites: list[PlannedSite] = []
        self.notes: list[str] = []
        self.names: set[tuple[str, str]] = set()

    def run(self) -> Plan:
        self._check_modalities()
        self._exclude()
        for index, rule in enumerate(self.rules.rules):
            if rule.match is not None:
                self._apply(index, rule)
        self._override()
        for point in self.inspection.fusion_points:
            if point.id in self.orders:
                self._plan_point(point, self.orders[point.id])
        for index, rule in enumerate(self.rules.rules):
            if rule.pair is not None:
                self._plan_pair(index, rule)
        self._raise()
        decisions = tuple(self._decision(point) for point in self.inspection.fusion_points)
        return Plan(decisions, tuple(self.sites), (*self.notes, *advice(self.sites)))

    # -- which rule decides which point ---------------------------------------------------------------------

    def _check_modalities(self) -> None:
        """Names in rules that no modality of this model has (the file's own list has been checked on reading)."""
        problems: list[Problem] = []
        for path, name in _named_modalities(self.rules):
            if name not in self.order:
                problems.append(Problem(path, unknown_modality(name, list(self.order))))
        if problems:
            ids = {index: rule.id for index, rule in enumerate(self.rules.rules)}
            raise RulesError(render(problems, self.rules.marks, ids))

    def _exclude(self) -> None:
        for index, match in enumerate(self.rules.exclude):
            where = self.rules.where("exclude", index)
            selection = select(match, self.inspection, naming=False)
            for point in selection.points:
                reason = f"excluded by exclude[{index}] ({where})"
                self.decisions.setdefault(point.id, Decision(point.id, "skip", None, reason))
            if not selection.points:
                self._finding(f"{where}: exclude[{index}] matches no fusion point" + self._nearest(selection))

    def _apply(self, index: int, rule: Rule) -> None:
        assert rule.match is not None
        where = self.rules.where("rules", index, "match", key=True)
        selection = select(rule.match, self.inspection, naming=rule.action != "skip")
        self.selections.append((rule, selection))
        won = [point for point in selection.points if point.id not in self.decisions]
        allows_none = rule.expect is not None and rule.expect.min == 0
        if not selection.points and not allows_none:
            self._finding(f"{where}: rule `{rule.id}` matches no fusion point" + self._nearest(selection))
        elif not won and not allows_none:
            takers = (f"`{p.id}` by {_taker(self.decisions[p.id])}" for p in selection.points)
            self._finding(
                f"{where}: rule `{rule.id}` has nothing left to decide, since earlier ones took all that it "
                f"matches: {', '.join(takers)}; put it before them, or remove it"
            )
        elif rule.expect is not None and not _within(len(won), rule.expect.min, rule.expect.max):
            self.problems.append(
                f"{self.rules.where('rules', index, 'expect')}: rule `{rule.id}` expects "
                f"{_count(rule.expect.min, rule.expect.max)}, but selects {len(won)}: "
                + listing(point.id for point in won)
            )
        for point in won:
            reason = f"rule `{rule.id}` ({where}) is the first to match"
            self.decisions[point.id] = Decision(point.id, rule.action, rule.id, reason)
            if rule.action == "normalize":
                self.orders[point.id] = _Order(index, rule)

    def _override(self) -> None:
        for key, override in self.rules.overrides.items():
            where = self.rules.where("overrides", key, key=True)
            if key not in self.points:
                hint = did_you_mean(key, self.points)
                self._finding(
                    f"{where}: overrides name `{key}`, but no fusion point has that id{hint} "
                    f"(found: {listing(self.points)})"
                )
            elif key not in self.orders:
                why = self.decisions[key].reason if key in self.decisions else "no rule matches it"
                self._finding(f"{where}: the override of `{key}` changes nothing, since it is not normalised: {why}")
            else:
                self.orders[key] = replace(self.orders[key], override=override)

    def _decision(self, point: FusionPoint) -> Decision:
        if point.id in self.decisions:
            return self.decisions[point.id]
        whys = [
            f"`{rule.id}`: {'; '.join(selection.failed[point.id])}"
            for rule, selection in self.selections
            if point.id in selection.failed
        ]
        return Decision(point.id, "leave", None, "no rule matches; " + " / ".join(whys) if whys else "no rule matches")

    # -- what goes in where -----------------------------------------------------------------------------------

    def _plan_point(self, point: FusionPoint, order: _Order) -> None:
        where = self.rules.where("rules", order.index)
        chosen, problems = directed_sites(point, *order.direction, order.all_pairs, self.order)
        for site, f, g in chosen:
            problems += obstacles(point, site, f, g)
        if not problems and not chosen:
            problems = ["no place for RegBN is known there" + (f": {point.note}" if point.note else "")]
        if problems:
            self.problems += [f"{where}: rule `{order.rule.id}` at `{point.id}`: {text}" for text in problems]
            return
        for site, f, g in chosen:
            reduce = _first(order.override, order.rule, self.rules.defaults, name="reduce") or site.reduce
            self._add(order, site.host, site.sides[f], site.sides[g], reduce, where, point=point.id, site=site)

    def _plan_pair(self, index: int, rule: Rule) -> None:
        assert rule.pair is not None
        where = self.rules.where("rules", index, "pair")
        references = (rule.pair.f, rule.pair.g)
        if self.resolve_pair is None:
            self.problems.append(f"{where}: rule `{rule.id}`: pairs cannot be resolved without the model")
            return
        try:
            host, f, g = self.resolve_pair(*references)
        except PlanError as error:
            self.problems.append(f"{where}: rule `{rule.id}`: {error}")
            return
        unknown = [text for side, ref in ((f, references[0]), (g, references[1])) for text in unknown_layout(side, ref)]
        if unknown:
            self.problems += [f"{where}: rule `{rule.id}`: {text}" for text in unknown]
            return
        tokens = f.layout.sequence or g.layout.sequence
        usual: Reduce = "mean" if tokens else "flatten"
        reduce = _first(rule, self.rules.defaults, name="reduce") or usual
        self._add(_Order(index, rule), host, f, g, reduce, where, pair=references)

    def _add(self, order: _Order, host: str, f: Side, g: Side, reduce: Reduce, where: str, **place: Any) -> None:
        layers = (self.rules.defaults, order.rule, order.override)
        merged = {name: value for layer in layers if layer is not None for name, value in layer.regbn.items()}
        stated = {name: merged.pop(name) for name in SIZES if name in merged}
        site = PlannedSite(
            name=self._name(host, order.rule.id),
            host=host,
            rule=order.rule.id,
            f=f,
            g=g,
            reduce=reduce,
            replace=_first(order.override, order.rule, self.rules.defaults, name="replace") or "both",
            options=merged,
            **{"point": None, **place},
        )
        at = f"at `{site.point}`" if site.point is not None else "for its pair"
        problems = [*size_problems(site, stated), *option_problems(site)]
        self.problems += [f"{where}: rule `{order.rule.id}` {at}: {text}" for text in problems]
        self.sites.append(site)

    def _name(self, host: str, rule_id: str) -> str:
        base = "regbn_" + re.sub(r"\W", "_", rule_id, flags=re.ASCII)
        name, number = base, 0
        while (host, name) in self.names:
            number += 1
            name = f"{base}_{number}"
        self.names.add((host, name))
        return name

    # -- what is wrong ------------------------------------------------------------------------------------------

    def _finding(self, text: str) -> None:
        if self.rules.strict:
            self.findings.append(text)
        else:
            self.notes.append(text)

    def _nearest(self, selection: Selection) -> str:
        if not self.points:
            return "; the model has none: no two of its modalities meet" + "".join(
                f"\n    {note}" for note in self.inspection.notes
            )
        nearest = sorted(selection.failed.items(), key=lambda item: len(item[1]))[:3]
        lines = [f"\n    nearest: `{point}`: {'; '.join(clauses)}" for point, clauses in nearest]
        found = [
            f"\n    found: `{p.id}` ({p.kind}, {p.level}, owner {p.owner or 'the root'}, {spell_homes(p.homes)})"
            for p in self.inspection.fusion_points[:20]
        ]
        if len(self.points) > len(found):
            found.append(f"\n    and {len(self.points) - len(found)} more")
        return ":" + "".join(lines + found)

    def _raise(self) -> None:
        texts = [*self.findings, *self.problems]
        if not texts:
            return
        message = texts[0] if len(texts) == 1 else f"{len(texts)} problems:\n" + "\n".join(f"  {t}" for t in texts)
        raise (PlanError if self.problems else NothingMatchedError)(message)


def _named_modalities(rules: Rules) -> Iterator[tuple[Path, str]]:
    for index, rule in enumerate(rules.rules):
        for key in ("normalize", "against"):
            if name := getattr(rule, key):
                yield ("rules", index, key), name
        for position, name in enumerate(rule.match.between or () if rule.match else ()):
            yield ("rules", index, "match", "between", position), name
    for index, match in enumerate(rules.exclude):
        for position, name in enumerate(match.between or ()):
            yield ("exclude", index, "between", position), name
    for key, override in rules.overrides.items():
        for side in ("normalize", "against"):
            if name := getattr(override, side):
                yield ("overrides", key, side), name


def _first(*layers: Any, name: str) -> Any:
    """The first value that is set, the most particular layer first."""
    values = (getattr(layer, name) for layer in layers if layer is not None)
    return next((value for value in values if value is not None), None)


def _taker(decision: Decision) -> str:
    return f"rule `{decision.rule}`" if decision.rule else "an exclude"


def _within(count: int, low: int, high: int | None) -> bool:
    return low <= count and (high is None or count <= high)


def _count(low: int, high: int | None) -> str:
    if high is None:
        return f"at least {low}"
    return f"exactly {low}" if low == high else f"{low} to {high}"
