"""RegBN acts on the pair that the rule names and on no other, however a call orders, leaves out or adds branches."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery import RegBNWarning, regbnify

from ._models import FUSIONS, OWNERS, batch, branches, by_hand, rule, state, trained, watched

#: Other ways to call than the example: what meets, and what else meets at the same line, before or after.
WAYS: dict[str, dict[str, Any]] = {
    "as in the example": {},
    "f and g exchanged": {"order": "ba"},
    "another pair after": {"others": "ac"},
    "another pair before": {"others": "ac", "first": True},
    "f elsewhere, exchanged": {"others": "ca", "first": True},
    "g elsewhere": {"others": "cb", "first": True},
    "exchanged, another before": {"order": "ba", "others": "ac", "first": True},
}
WITHOUT: dict[str, dict[str, Any]] = {
    "f with another": {"order": "ac"},
    "another with f": {"order": "ca"},
    "g with another": {"order": "bc"},
    "f alone": {"order": "a"},
    "f twice": {"order": "aa"},
    "two others": {"order": "cb", "others": "ac"},
}
owners = pytest.mark.parametrize("where", OWNERS)
#: Two of the fusions are a second look at what the others show.
fusions = pytest.mark.parametrize(
    "fusion",
    [pytest.param(name, marks=pytest.mark.slow if name in ("stack", "outer product") else []) for name in FUSIONS],
)
both_directions = pytest.mark.parametrize(("normalize", "against"), [("a", "b"), ("b", "a")])


def core(model: nn.Module) -> Any:
    while hasattr(model, "inner"):
        model = model.inner
    return model


def sides(model: nn.Module, x: tuple[Tensor, ...], normalize: str, against: str) -> tuple[Tensor, Tensor]:
    made = dict(zip("abc", (layer(value) for layer, value in zip(_layers(model), x, strict=True)), strict=True))
    return made[normalize], made[against]


def _layers(model: nn.Module) -> list[nn.Module]:
    return [core(model).fa, core(model).fb, core(model).fc]


@pytest.mark.parametrize("way", WAYS)
@fusions
@owners
def test_the_pair_of_the_rule(fusion: str, where: str, way: str) -> None:
    """One run of RegBN in each call, on f and g of the rule, in the first call of a way and in later ones."""
    x = batch()
    model = trained(branches(fusion, where), rule(FUSIONS[fusion][1]), x)
    for train, size in [(True, 6), (False, 6), (False, 3), (True, 9)]:
        _assert_once(model.train(train), batch(size, seed=size), WAYS[way], "a", "b")


@pytest.mark.parametrize("way", ["f and g exchanged", "another pair before"])
@pytest.mark.parametrize("depth", [1, 2])
@both_directions
@owners
def test_the_pair_of_the_rule_deeper(where: str, normalize: str, against: str, depth: int, way: str) -> None:
    x = batch()
    model = trained(branches("cat", where, depth), rule("concat", normalize, against), x)
    for train in (False, True):
        _assert_once(model.train(train), x, WAYS[way], normalize, against)


def _assert_once(
    model: nn.Module, x: tuple[Tensor, Tensor, Tensor], way: dict[str, Any], normalize: str, against: str
) -> None:
    f, g = sides(model, x, normalize, against)
    with watched(model) as runs:
        outputs = model(*x, **way)
    assert len(runs) == 1, f"RegBN ran {len(runs)} times"
    torch.testing.assert_close(runs[0], (f.detach(), g.detach()))
    if not model.training:
        new = dict(zip((normalize, against), by_hand(model, f, g), strict=True))
        _assert_outputs(model, x, way, new, outputs)


def _assert_outputs(
    model: nn.Module, x: tuple[Tensor, ...], way: dict[str, Any], new: dict[str, Tensor], outputs: tuple[Tensor, ...]
) -> None:
    """f' and g' stand where f and g meet, and nowhere else."""
    net = core(model)
    raw = dict(zip("abc", (layer(value) for layer, value in zip(_layers(model), x, strict=True)), strict=True))
    order, others = way.get("order", "ab"), way.get("others", "")
    expected = [net.finish(net.fusion([{**raw, **new}[name] for name in order]))]
    if others:
        expected.append(net.finish(net.fusion([raw[name] for name in others])))
    if way.get("first"):
        expected.reverse()
    torch.testing.assert_close(outputs, tuple(expected))


@pytest.mark.parametrize("way", WITHOUT)
@fusions
@owners
def test_without_the_pair(fusion: str, where: str, way: str) -> None:
    """Where f and g do not meet, the call is the original's, RegBN is as it was, and one warning says so."""
    x, original = batch(), branches(fusion, where)
    model = trained(original, rule(FUSIONS[fusion][1]), x)
    before = state(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for train in (False, True, False, True):
            with watched(model) as runs:
                found = model.train(train)(*x, **WITHOUT[way])
            assert not runs, "RegBN ran"
            torch.testing.assert_close(found, original.train(train)(*x, **WITHOUT[way]))
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)
    told = [entry for entry in caught if issubclass(entry.category, RegBNWarning)]
    assert len(told) <= 1, [str(entry.message) for entry in told]
    _assert_once(model.eval(), x, {}, "a", "b")


@pytest.mark.parametrize("train", [True, False])
@owners
def test_missing_modality_warns_once(where: str, train: bool) -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = branches("cat", where)

        def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
            net = core(self.net)
            made = [net.fa(a)] if b is None else [net.fa(a), net.fb(b)]
            result: Tensor = net.finish(net.meet(made))
            return result

    a, b, _ = batch()
    original = Optional()
    model = regbnify(original, rule(), (a, b)).train(train)
    before = state(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for size in (6, 4, 3):
            x = batch(size)[0]
            torch.testing.assert_close(model(x), original.train(train)(x))
    assert [entry.category for entry in caught].count(RegBNWarning) == 1
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)
