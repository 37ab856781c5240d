"""Other modules at the sites of RegBN: `regbnify(..., make=...)`."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from regbn_surgery import (
    Recipe,
    RecipeError,
    RegBN,
    RegBNShapeError,
    RewriteError,
    explain,
    fold,
    freeze,
    load_regbn,
    regbnify,
    save_regbn,
    statistics,
    unregbnify,
    verify,
)
from regbn_surgery.nn import NormsOnly, RegressOut

RULES = {"version": 1, "rules": [{"id": "late", "match": {"kind": "concat"}, "normalize": "image"}]}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.t, self.h = nn.Linear(8, 6), nn.Linear(5, 4), nn.Linear(10, 2)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.h(torch.cat([self.i(image), self.t(table)], 1))


class Tokens(Model):
    """Sequence first, channels last: what a made module is given is brought to its layout and back."""

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.h(torch.cat([self.i(image), self.t(table)], 2))


class Scale(nn.Module):
    """Somebody's own: notes the shapes that it is given."""

    def __init__(self, site) -> None:
        super().__init__()
        self.site = (site.host, site.name, site.f.channels, site.g.channels)
        self.weight = nn.Parameter(torch.full((1, site.f.channels), 2.0))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, f: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen.append((*f.shape, *g.shape))
        return f * self.weight.view(1, -1, *[1] * (f.dim() - 2)), -g


def batch(size: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 8), torch.randn(size, 5)


def by_hand(model: nn.Module, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return model.h(torch.cat([2 * model.i(image), -model.t(table)], -1))


def test_a_module_of_ones_own_is_called_in_place_of_RegBN() -> None:  # noqa: N802
    original = Model()
    model = regbnify(original, RULES, batch(4), make=Scale)
    module = model.regbn_late.regbn
    assert isinstance(module, Scale)
    assert module.site == ("", "regbn_late", 6, 4)
    for mode in (True, False):
        inputs = batch()
        torch.testing.assert_close(model.train(mode)(*inputs), by_hand(original, *inputs))
    assert set(module.seen) == {(7, 6, 7, 4)}
    assert "regbn_late.regbn.weight" in dict(model.named_parameters())
    model(*batch()).sum().backward()
    assert module.weight.grad is not None
    assert verify(model, batch(4)).ok
    assert explain(model)
    assert statistics(model) == {}
    inputs = batch()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(*inputs), model(*inputs))
    assert unregbnify(model).state_dict().keys() == original.state_dict().keys()


def test_layouts_are_brought_to_channels_first_and_back() -> None:
    original = Tokens()
    inputs = torch.randn(4, 3, 8), torch.randn(4, 3, 5)
    model = regbnify(original, RULES, inputs, make=Scale)
    torch.testing.assert_close(model(*inputs), by_hand(original, *inputs))
    assert model.regbn_late.regbn.seen[-1][:2] == (4, 6)


def test_the_norms_alone_are_RegBN_before_its_first_step() -> None:  # noqa: N802
    rules = copy.deepcopy(RULES)
    rules["rules"][0]["regbn"] = {"affine": True}
    original, inputs = Model(), batch()
    control = regbnify(original, rules, batch(4), make=NormsOnly.at)
    fresh = regbnify(original, rules, batch(4)).eval()
    torch.testing.assert_close(control.train()(*inputs), fresh(*inputs))
    ours, theirs = ({n for n, _ in m.named_parameters()} for m in (control, fresh))
    assert ours == theirs


def test_least_squares_leaves_nothing_linear_and_nothing_else() -> None:
    torch.manual_seed(0)
    regress = RegressOut(3, 4)
    slope = torch.randn(4, 3)
    for _ in range(30):
        g = torch.randn(40, 4) + 2
        f = g @ slope + 5
        residual = regress(f, g)[0]
    torch.testing.assert_close(residual - residual.mean(0), torch.zeros(40, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(regress.W, slope, atol=1e-3, rtol=1e-3)
    model = regbnify(Model(), RULES, batch(4), make=RegressOut.at)
    assert isinstance(model.regbn_late.regbn, RegBN)  # frozen, folded and watched as RegBN is
    model(*batch(20))
    assert "regbn_late/removed" in statistics(model)
    inputs = batch()
    want = model.eval()(*inputs)
    torch.testing.assert_close(fold(model, batch(4))(*inputs), want, atol=1e-5, rtol=1e-5)


def test_a_recipe_does_not_hold_code_and_says_so(tmp_path) -> None:
    model = regbnify(Model(), RULES, batch(4), make=Scale)
    with torch.no_grad():
        model.regbn_late.regbn.weight.fill_(3.0)
    save_regbn(model, tmp_path)
    fresh = Model()
    with pytest.raises(RecipeError, match="regbn_late were created by the function passed to regbnify as make="):
        load_regbn(fresh, tmp_path)
    assert not hasattr(fresh, "regbn_late")
    loaded = load_regbn(fresh, tmp_path, make=Scale)
    inputs = batch()
    torch.testing.assert_close(loaded(*inputs), model(*inputs))


def test_freezing_keeps_it_in_evaluation_and_folding_refuses() -> None:
    model = regbnify(Model(), RULES, batch(4), make=lambda site: nn.Identity() if site is None else Scale(site))
    freeze(model.train())
    assert not model.regbn_late.regbn.training
    assert not model.train().regbn_late.regbn.training
    assert not any(p.requires_grad for p in model.regbn_late.parameters())
    freeze(model, False)
    assert model.regbn_late.regbn.training
    with pytest.raises(RewriteError, match="Scale replaces RegBN here; only RegBN can be folded"):
        fold(model, batch(4))


class Bad(nn.Module):
    def __init__(self, result) -> None:
        super().__init__()
        self.result = result

    def forward(self, f, g):
        return self.result(f, g)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (lambda f, g: f, "returned Tensor; a module that replaces RegBN must return two tensors"),
        (lambda f, g: (f[:, :2], g), r"returned shapes \[7, 2\] and \[7, 4\] for f \[7, 6\]"),
        (lambda f, g: (f, None), "returned tuple"),
    ],
)
def test_what_does_not_fit_a_site_is_told_by_name(result, says: str) -> None:
    model = regbnify(Model(), RULES, batch(4), make=lambda site: Bad(result))
    with pytest.raises(RegBNShapeError, match=says):
        model(*batch())


def test_a_maker_that_fails_leaves_the_model_as_it_was() -> None:
    model = Model()
    keys = list(model.state_dict())
    with pytest.raises(RewriteError, match="make returned a value of type int for `regbn_late`"):
        regbnify(model, RULES, batch(4), inplace=True, make=lambda site: 3)
    with pytest.raises(ZeroDivisionError):
        regbnify(model, RULES, batch(4), inplace=True, make=lambda site: 1 / 0)
    assert list(model.state_dict()) == keys
    assert type(model) is Model
    regbnify(model, RULES, batch(4), inplace=True)


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_function_that_fails_leaves_the_model_as_it_was(failure: type[BaseException]) -> None:
    model = Model()
    keys, kind = list(model.state_dict()), type(model)

    def fail(site: object) -> nn.Module:
        raise failure

    with pytest.raises(failure):
        regbnify(model, RULES, batch(4), make=fail, inplace=True)
    assert (list(model.state_dict()), type(model)) == (keys, kind)
    assert explain(model).hosts == ()
    regbnify(model, RULES, batch(4), inplace=True)


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_so_it_does_where_a_recipe_calls_it(failure: type[BaseException]) -> None:
    recipe, fresh = Recipe.of(regbnify(Model(), RULES, batch(4), make=Scale)), Model()
    keys, kind = list(fresh.state_dict()), type(fresh)

    def fail(site: object) -> nn.Module:
        raise failure

    with pytest.raises((RecipeError, KeyboardInterrupt)):
        recipe.apply(fresh, make=fail, inplace=True)
    assert (list(fresh.state_dict()), type(fresh)) == (keys, kind)
    assert explain(fresh).hosts == ()
