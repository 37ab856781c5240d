"""What every generated model must pass: the truth about its points, a faithful surgery, training, and the way back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

import regbn_surgery

from ._faith import Call, assert_faithful, assert_restored, assert_same, assert_trains, copied, regbns, run
from ._generate import Generated


def found_points(inspection: Any) -> Counter[Any]:
    return Counter(
        (point.owner, point.kind, frozenset(frozenset(home) for home in point.homes))
        for point in inspection.fusion_points
    )


def check_points(generated: Generated) -> Any:
    inspection = regbn_surgery.inspect(generated.make(), generated.inputs, modalities=generated.modalities)
    found = found_points(inspection)
    missed, extra = generated.points - found, found - generated.points
    assert not missed, f"points missed: {_listed(missed)}; extra: {_listed(extra)}"
    assert not extra, f"points extra: {_listed(extra)}"
    return inspection


def check_all(generated: Generated) -> None:
    inspection = check_points(generated)
    if not generated.points:
        return
    original = generated.make()
    rules = {
        "version": 1,
        "modalities": generated.modalities,
        "rules": [{"id": "r", "match": {"kind": sorted({p.kind for p in inspection.fusion_points})}, "pairs": "all"}],
    }
    rewritten = regbn_surgery.regbnify(original, rules, generated.inputs)
    assert isinstance(rewritten, type(original))
    assert len(regbns(rewritten)) >= len(inspection.fusion_points), "a point without RegBN"
    calls = []
    for i, (batch, train) in enumerate([(2, False), (2, True), (5, True), (3, False), (5, False)]):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(i)
            calls.append(Call(generated.inputs(batch), train, i))
    assert_faithful(original, rewritten, calls)
    assert_trains(rewritten, [call for call in calls if call.train])
    check_placement(generated)
    regbn_surgery.unregbnify(rewritten)
    assert_restored(original, rewritten, calls[:2])


def check_placement(generated: Generated) -> bool:
    """Live RegBN, held to the same model with RegBN written in by hand before each join. False: nothing to compare.

    Identity cannot show that f' goes where f went and nowhere else; this does.
    """
    kinds = sorted({kind for _, kind, _ in generated.points} & {"concat", "sum", "product"})
    joined = Counter((join.owner, join.kind, frozenset(join.homes)) for join in generated.joins)
    kinds = [k for k in kinds if all(joined[key] == n for key, n in generated.points.items() if key[1] == k)]
    if not kinds or generated.twin is None:
        return False
    rules = {
        "version": 1,
        "modalities": generated.modalities,
        "rules": [{"id": "r", "match": {"kind": kinds}, "pairs": "all"}],
    }
    original = generated.make()
    plan = regbn_surgery.plan(original, rules, generated.inputs)
    rewritten = regbn_surgery.regbnify(original, rules, generated.inputs)
    reference = copied(rewritten)
    sites = _sites_by_join(generated, plan, reference, kinds)

    def at(number: int, *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
        new = list(operands)
        for f, g, site in sites.get(number, ()):
            new[f], new[g] = site(new[f], new[g])
        return tuple(new)

    twin = generated.twin(at)
    twin.load_state_dict(original.state_dict())
    for seed, (batch, train) in enumerate([(4, True), (4, True), (3, False)]):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            call = Call(generated.inputs(batch), train, seed)
        reference.train(train)
        expected, expected_grads = run(twin, call)
        found, found_grads = run(rewritten, call)
        assert_same(found, expected, f"live output, train={train}")
        for name, grad in expected_grads.items():
            assert_same(found_grads[name], grad, f"live gradient of {name}")
    return True


def _sites_by_join(generated: Generated, plan: Any, model: torch.nn.Module, kinds: list[str]) -> dict[int, list[Any]]:
    """For each join the sites of the plan in order, as (index of f, index of g, module)."""
    points = list(dict.fromkeys(site.point for site in plan.sites))
    joins = {number: join for number, join in enumerate(generated.joins) if join.kind in kinds}
    found: dict[int, list[Any]] = {}
    for point in points:
        members = [site for site in plan.sites if site.point == point]
        homes = frozenset(frozenset(side.home) for site in members for side in (site.f, site.g))
        host = members[0].host
        number = next(n for n, j in joins.items() if n not in found and (j.owner, frozenset(j.homes)) == (host, homes))
        order = joins[number].homes
        found[number] = [
            (
                order.index(frozenset(s.f.home)),
                order.index(frozenset(s.g.home)),
                model.get_submodule(s.host).get_submodule(s.name),
            )
            for s in members
        ]
    return found


def _listed(points: Counter[Any]) -> str:
    return ", ".join(f"{n} x {o or '(root)'} {k} {sorted(map(sorted, h))}" for (o, k, h), n in points.items()) or "none"
