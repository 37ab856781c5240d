"""Rules applied to what inspection found: one decision for every fusion point, and the sites that follow.

A pure function of its arguments: nothing of the model is touched here, and no torch is needed.
All that is wrong is collected and told at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .._codes import code_of, coded, kept
from .._errors import NothingMatchedError, PlanError, RulesError
from .._rules.checks import unknown_modality
from .._rules.document import Rules
from .._rules.matching import Selection, select, spell_homes
from .._rules.naming import parts_of
from .._rules.problems import Path, Problem, did_you_mean, listing, render
from .._rules.schema import InputSpec, Match, Rule
from .._types import Decision, FusionPoint, Inspection, Plan
from .advice import advise, counted_padding
from .binding import described_points
from .facts import Facts, with_causality
from .faults import Order
from .hazards import out_of_range, too_large_in_all
from .placing import Placer, ResolvePair, count, within


def decide(
    rules: Rules, inspection: Inspection, resolve_pair: ResolvePair | None = None, facts: Facts | None = None
) -> Plan:
    """Apply `rules` to the found fusion points.

    The first rule that matches a point decides it; `skip` and `exclude` are final; overrides by point id come
    last. Rules with `pair` need `resolve_pair`, and `facts.references` where the pair is a pattern.

    Raises `NothingMatchedError` where a rule, exclude or override selects nothing (a note in the plan instead
    under `strict: warn`), and `PlanError` for whatever else stands in the way, all of it in one message.
    """
    return _Planner(rules, inspection, resolve_pair, facts or Facts()).run()


class _Planner:
    """The state of one `decide`: what is decided so far, and what stands in the way."""

    def __init__(self, rules: Rules, inspection: Inspection, resolve_pair: ResolvePair | None, facts: Facts) -> None:
        self.rules = rules
        self.inspection = inspection
        self.facts = facts
        self.order = {modality.name: index for index, modality in enumerate(inspection.modalities)}
        self.points = {point.id: with_causality(point, facts) for point in inspection.fusion_points}
        self.placer = Placer(rules, self.order, resolve_pair, facts)
        self.decisions: dict[str, Decision] = {}
        self.orders: dict[str, Order] = {}
        self.selections: list[tuple[Rule, Selection]] = []
        self.findings: list[str] = []
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def run(self) -> Plan:
        self._check_modalities()
        self._exclude()
        for index, rule in enumerate(self.rules.rules):
            if rule.match is not None:
                self._apply(index, rule)
        self._override()
        for point in self.points.values():
            if point.id in self.orders:
                self.placer.at_point(point, self.orders[point.id])
        for index, rule in enumerate(self.rules.rules):
            if rule.pair is not None:
                self.placer.at_pair(index, rule)
        for text in self.placer.findings:
            self._finding(text)
        if not self.placer.sites:  # there is nothing that could be done
            self.problems += [text for texts in self.placer.refused.values() for text in texts]
        self._raise()
        sites = tuple(self.placer.sites)
        left_out = (text for texts in self.placer.refused.values() for text in texts)
        self.warnings += [coded("RB102", f"left out: {text}") for text in left_out]
        self.warnings += [*out_of_range(sites), *too_large_in_all(sites)]
        self.warnings += counted_padding(sites, self.facts, self.placer.counted)
        self.warnings += [note for note in self.inspection.notes if code_of(note) == "RB016"]
        return Plan(
            decisions=tuple(self._decision(point) for point in self.inspection.fusion_points),
            sites=sites,
            notes=kept(advise(sites, self.points, self.facts, self.placer.counted), self.rules.ignore),
            model=self.inspection.model,
            modalities=self.inspection.modalities,
            points=described_points(self.inspection),
            warnings=kept(self.warnings, self.rules.ignore),
            ignore=self.rules.ignore,
            inputs={name: _input_dict(spec) for name, spec in self.rules.inputs.items()},
        )

    # -- which rule decides which point ---------------------------------------------------------------------

    def _check_modalities(self) -> None:
        """Names in rules that no modality of this model has (the file's own list has been checked on reading)."""
        problems: list[Problem] = []
        for path, name in _named_modalities(self.rules):
            if parts_of(name, self.order) is None:
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
                where = self._culprit(("exclude", index), match) or where
                self._finding(f"{where}: exclude[{index}] matches no fusion point" + self._nearest(selection, match))

    def _apply(self, index: int, rule: Rule) -> None:
        assert rule.match is not None
        base = ("rules", index, "match")
        where = self.rules.where(*base, key=True)
        selection = select(rule.match, self.inspection, naming=rule.action != "skip")
        self.selections.append((rule, selection))
        won = [point for point in selection.points if point.id not in self.decisions]
        allows_none = rule.expect is not None and rule.expect.min == 0
        if not selection.points and not allows_none:
            culprit = self._culprit(base, rule.match) or where
            self._finding(f"{culprit}: rule `{rule.id}` matches no fusion point" + self._nearest(selection, rule.match))
        elif not won and not allows_none:
            takers = (f"`{p.id}` by {_taker(self.decisions[p.id])}" for p in selection.points)
            self._finding(
                f"{where}: rule `{rule.id}` has nothing left to match, since earlier ones took all its fusion points: "
                f"{', '.join(takers)}; move it before them, or remove it"
            )
        elif rule.expect is not None and not within(len(won), rule.expect.min, rule.expect.max):
            self.problems.append(
                f"{self.rules.where('rules', index, 'expect')}: rule `{rule.id}` expects "
                f"{count(rule.expect.min, rule.expect.max)}, but selects {len(won)}: "
                + listing(point.id for point in won)
            )
        for point in won:
            reason = f"rule `{rule.id}` ({where}) is the first to match"
            self.decisions[point.id] = Decision(point.id, rule.action, rule.id, reason)
            if rule.action == "normalize":
                self.orders[point.id] = Order(index, rule, point=point.id)

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
        made = self.decisions.get(point.id)
        why = self.placer.refused.get(point.id)
        if made is not None and why and all(site.point != point.id for site in self.placer.sites):
            made = Decision(point.id, "leave", made.rule, f"{made.reason}, and RegBN cannot go there: see the warnings")
        others = tuple(
            (rule.id, "; ".join(selection.failed.get(point.id) or (f"{_taker(made)} came first",)))
            for rule, selection in self.selections
            if made is None or made.rule != rule.id
        )
        if made is not None:
            return replace(made, others=others)
        whys = [f"`{rule}`: {why}" for rule, why in others]
        reason = "no rule matches" + ("; " + " / ".join(whys) if whys else "")
        return Decision(point.id, "leave", None, reason, others)

    # -- what is wrong ------------------------------------------------------------------------------------------

    def _finding(self, text: str) -> None:
        if self.rules.strict:
            self.findings.append(text)
        else:
            self.warnings.append(coded("RB101", text))

    def _culprit(self, base: Path, match: Match) -> str | None:
        """The place of the first key of a match that no point fits, whatever the others say."""
        for key in match.model_dump(exclude_unset=True):
            alone = Match.model_validate({key: getattr(match, key)})
            if not select(alone, self.inspection, naming=False).points:
                return self.rules.where(*base, key)
        return None

    def _nearest(self, selection: Selection, match: Match) -> str:
        if not self.points:
            return "; the model has none: no two of its modalities meet" + "".join(
                f"\n    {note}" for note in self.inspection.notes
            )
        hints = [did_you_mean(text, [p.owner for p in self.points.values()]) for text in match.owner or ()]
        hints += [did_you_mean(text, self.points) for text in match.point or ()]
        hint = next((text for text in hints if text), "")
        nearest = sorted(selection.failed.items(), key=lambda item: len(item[1]))[:3]
        lines = [f"\n    nearest: `{point}`: {'; '.join(clauses)}" for point, clauses in nearest]
        found = [
            f"\n    found: `{p.id}` ({p.kind}, {p.level}, owner {p.owner or 'the root'}, {spell_homes(p.homes)})"
            for p in self.inspection.fusion_points[:20]
        ]
        if len(self.points) > len(found):
            found.append(f"\n    and {len(self.points) - len(found)} more")
        return (hint or ":") + "".join(lines + found)

    def _raise(self) -> None:
        problems = [*self.problems, *self.placer.problems]
        texts = [*self.findings, *problems]
        if not texts:
            return
        message = texts[0] if len(texts) == 1 else f"{len(texts)} problems:\n" + "\n".join(f"  {t}" for t in texts)
        raise (PlanError if problems else NothingMatchedError)(message)


def _named_modalities(rules: Rules) -> Iterator[tuple[Path, str]]:
    for index, rule in enumerate(rules.rules):
        for key in ("normalize", "against"):
            if name := getattr(rule, key):
                yield ("rules", index, key), name
        for position, name in enumerate(rule.match.between or () if rule.match else ()):
            yield ("rules", index, "match", "between", position), name
        for name in filter(None, rule.mask or ()):
            yield ("rules", index, "mask", name), name
    for name in filter(None, rules.defaults.mask or ()):
        yield ("defaults", "mask", name), name
    for index, match in enumerate(rules.exclude):
        for position, name in enumerate(match.between or ()):
            yield ("exclude", index, "between", position), name
    for key, override in rules.overrides.items():
        for side in ("normalize", "against"):
            if name := getattr(override, side):
                yield ("overrides", key, side), name
        for name in filter(None, override.mask or ()):
            yield ("overrides", key, "mask", name), name


def _taker(decision: Decision | None) -> str:
    assert decision is not None, "a point that a rule matches is decided"
    return f"rule `{decision.rule}`" if decision.rule else "an exclude"


def _input_dict(spec: InputSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude_defaults=True)
