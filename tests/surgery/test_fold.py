"""A trained model for use: frozen, folded, and the way all the way back."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RegBNWarning, RewriteError, unregbnify
from regbn_surgery._surgery import RegBNSite, _fold, explain
from regbn_surgery._surgery._guard import Guard

from .models import Cross, Late, Nested, build, counting, everything, operate, operate_by, run, site_of, step, vectors
from .test_scatter import WRITERS, Filled, Scattering, example, filled_inputs

LINEAR = {"regbn": {"normalize_output": False}}


class Plain(nn.Module):
    """Two encoders, a concatenation, a linear layer; in the root (tier 2) or in a module (tier 1)."""

    def __init__(self, turned: bool = False) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 4)
        self.head = nn.Linear(12, 3)
        self.turned = turned

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pair = (self.enc_a(a), self.enc_b(b))
        return self.head(torch.cat(pair[::-1] if self.turned else pair, dim=-1))


def trained(cls: Any, *args: Any, **rule: Any) -> Any:
    rewritten = operate(build(cls, *args), vectors(), **rule)
    for seed in range(3):
        step(rewritten, vectors(8, seed))
    assert site_of(rewritten).regbn.W.any()
    return rewritten.eval()


@pytest.mark.parametrize("cls", [Late, Nested, Plain])
def test_a_frozen_model_evaluates_as_before_and_no_step_moves_its_projection(cls: type[nn.Module]) -> None:
    rewritten = trained(cls, regbn={"affine": True})
    before = run(rewritten, vectors(5), False)
    regbn = site_of(rewritten).regbn
    state = {name: value.clone() for name, value in regbn.state_dict().items()}
    assert regbn_surgery.freeze(rewritten) is rewritten
    assert torch.equal(run(rewritten, vectors(5), False), before)
    with counting(rewritten) as calls:
        step(rewritten, vectors(8, 7))
    assert sum(calls.values()) == 1
    for name, value in regbn.state_dict().items():
        assert torch.equal(value, state[name]), name
    if cls is not Late:  # whose own batch norm wants a batch
        assert copy.deepcopy(rewritten).train()(**vectors(1)).isfinite().all()
    regbn_surgery.freeze(rewritten, frozen=False)
    assert all(parameter.requires_grad for parameter in regbn.parameters())
    step(rewritten, vectors(8, 7))
    assert not torch.equal(regbn.W, state["W"])


@pytest.mark.parametrize("rule", [{}, {"replace": "f"}, {"normalize": "b", "against": "a"}], ids=str)
@pytest.mark.parametrize(("cls", "turned"), [(Plain, False), (Plain, True), (Nested, False)])
def test_a_folded_model_is_the_original_class_with_other_weights(cls: Any, turned: bool, rule: dict[str, Any]) -> None:
    rewritten = trained(cls, *([turned] if cls is Plain else []), **LINEAR, **rule)
    before = {batch: run(rewritten, vectors(batch), False) for batch in (1, 2, 9)}
    rewritten.train()
    kept = everything(rewritten)
    folded = regbn_surgery.fold(rewritten, vectors())
    assert everything(rewritten) == kept
    original = build(cls)
    assert [type(m) for m in folded.modules()] == [type(m) for m in original.modules()]
    assert list(folded.state_dict()) == list(original.state_dict())
    assert not any(module._forward_pre_hooks for module in folded.modules())
    assert not folded.training
    for batch, expected in before.items():
        torch.testing.assert_close(run(folded, vectors(batch), False), expected, rtol=1e-5, atol=1e-6)
    plain = run(unregbnify(rewritten), vectors(9), False)
    assert not torch.allclose(plain, before[9], atol=1e-3), "the projection did nothing"
    assert regbn_surgery.fold  # and may be operated on again
    assert site_of(operate(folded, vectors()))


class Twice(Plain):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        joint = torch.cat([f, g], dim=-1)
        return self.head(joint) + joint.mean()


class Aside(Plain):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        return self.head(torch.cat([f, g], dim=-1)) + f.mean()


class Alone(Plain):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        return torch.cat([f], dim=-1).sum(-1) + g.sum(-1)


class Shared(Plain):
    """The layer behind has other work, too."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        joint = torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1)
        return self.head(joint) + self.head(torch.ones(len(joint), 12))


class Tied(Plain):
    """A layer that this forward does not come by has the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(12, 3)
        self.other.weight = self.head.weight


class Stacked(Plain):
    """Joined along the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_b, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.enc_a(a), self.enc_b(b)], dim=0))


class Tokens(Stacked):
    """Joined along the tokens."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = (x[:, None].expand(-1, 3, -1) for x in (self.enc_a(a), self.enc_b(b)))
        return self.head(torch.cat([f, g], dim=1))


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 4)
        self.fusion = Nested().fusion

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        f, g = self.enc_a(a), self.enc_b(b)
        return self.fusion(f, g) + self.fusion(2 * f, g)


PAIR: dict[str, Any] = {
    "version": 1,
    "rules": [{"id": "x", "pair": {"f": "module:enc_a", "g": "module:enc_b"}, **LINEAR}],
}


class Bent(Plain):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1).relu())


@pytest.mark.parametrize(
    ("cls", "rule", "match"),
    [
        (Plain, {}, "normalize_output=true"),
        (Twice, LINEAR, "not read by exactly one linear layer"),
        (Bent, LINEAR, "not read by exactly one linear layer"),
        (Late, LINEAR, "not read by exactly one linear layer"),
        (Shared, LINEAR, "not read by exactly one linear layer"),
        (Tied, LINEAR, "not read by exactly one linear layer"),
        (Aside, PAIR, "f' is used elsewhere than in one concatenation"),
        (Alone, PAIR, "not of the two feature vectors alone"),
        (Stacked, PAIR, "not of the two feature vectors alone"),
        (Tokens, {**LINEAR, "reduce": "flatten"}, "not of the two feature vectors alone"),
        (CalledTwice, LINEAR, "it runs 2 times in one forward pass"),
    ],
)
def test_what_is_not_exact_is_not_folded(cls: Any, rule: dict[str, Any], match: str) -> None:
    if rule is PAIR:
        rewritten = regbn_surgery.regbnify(build(cls), PAIR, vectors())
        step(rewritten, vectors(8))
        rewritten.eval()
    else:
        rewritten = trained(cls, **rule)
    before = everything(rewritten)
    with pytest.raises(RewriteError, match=rf"No RegBN can be folded exactly\. (fusion\.)?regbn_x: .*{match}"):
        regbn_surgery.fold(rewritten, vectors(), inplace=True)
    assert everything(rewritten) == before


def test_a_refusal_says_what_folding_needs_and_what_to_do_instead() -> None:
    with pytest.raises(RewriteError, match=r"one nn\.Linear alone reads\. Otherwise keep RegBN.*`freeze\(model\)`"):
        regbn_surgery.fold(trained(CalledTwice, **LINEAR), vectors())


def refused(rewritten: Any, inputs: Any, match: str) -> None:
    """Folding says why it cannot, and leaves the model as it was."""
    before = everything(rewritten)
    with pytest.raises(RewriteError, match=rf"No RegBN can be folded exactly\. (attention\.)?regbn_x: {match}"):
        regbn_surgery.fold(rewritten, inputs, inplace=True)
    assert everything(rewritten) == before


@pytest.mark.parametrize("rule", [{}, {"replace": "f"}, {"normalize": "a", "against": "b"}], ids=str)
@pytest.mark.parametrize("way", ["source", "mode"])
@pytest.mark.parametrize("cls", WRITERS)
def test_a_site_that_writes_into_positions_is_not_folded(cls: type[Scattering], way: str, rule: dict[str, Any]) -> None:
    given = {"normalize": "b", "against": "a", **LINEAR, **rule}
    rewritten = operate_by(way, build(cls), lambda size: example(size, ragged=False), "scatter", **given)
    refused(rewritten, example(5), "f' and g' are written into one tensor at their positions")  # and before any step
    step(rewritten, example(5))
    refused(rewritten, example(3), "f' and g' are written into one tensor at their positions")


@pytest.mark.parametrize("rule", [{}, {"replace": "f"}], ids=str)
@pytest.mark.parametrize("way", ["source", "mode"])
def test_a_site_at_a_tensor_filled_by_slices_is_not_folded(way: str, rule: dict[str, Any]) -> None:
    model = build(Filled)
    model(**filled_inputs(2, False))
    given = {"normalize": "a", "against": "b", **LINEAR, **rule}
    inputs: Any = filled_inputs(4, False)
    rewritten = operate_by(way, model, inputs, "scatter", **given)
    refused(rewritten, inputs, "f' is used elsewhere than in one concatenation")


@pytest.mark.parametrize("rule", [{}, {"replace": "f"}], ids=str)
@pytest.mark.parametrize("way", ["hook", "source", "mode"])
def test_a_site_at_attention_is_not_folded(way: str, rule: dict[str, Any]) -> None:
    inputs: Any = {"a": torch.randn(4, 3, 6), "b": torch.randn(4, 5, 5)}
    rewritten = operate_by(way, build(Cross), inputs, "attention", **LINEAR, **rule)
    refused(rewritten, inputs, "f' is used elsewhere than in one concatenation")


class Stuff(nn.Module):
    def forward(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return f, g


@pytest.mark.parametrize(
    ("cls", "kind", "inputs"), [(WRITERS[0], "scatter", example(4, ragged=False)), (Twice, "concat", vectors())]
)
def test_what_a_user_put_in_its_place_is_named_wherever_it_stands(cls: Any, kind: str, inputs: Any) -> None:
    given = {"version": 1, "rules": [{"id": "x", "match": {"kind": kind}, "pairs": "all"}]}
    rewritten = regbn_surgery.regbnify(build(cls), given, inputs, make=lambda site: Stuff())
    refused(rewritten, inputs, "Stuff replaces RegBN here")


class Skips(nn.Module):
    """Without b there is nothing to join."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b, self.head = nn.Linear(6, 8), nn.Linear(5, 4), nn.Linear(12, 3)
        self.alone = nn.Linear(8, 3)

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        if b is None:
            return self.alone(self.enc_a(a))
        return self.head(torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1))


def test_a_call_in_which_it_did_not_run_is_said_to_be_one() -> None:
    rewritten, alone = trained(Skips, **LINEAR), {"a": vectors()["a"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegBNWarning)  # which says the same of the call
        with pytest.raises(RewriteError, match=r"did not run on these example inputs.*in which both modalities meet"):
            regbn_surgery.fold(rewritten, alone)


def test_what_can_be_folded_is_and_the_rest_stays() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Plain(), Bent()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.one(a, b) + self.two(a, b)

    rewritten = operate(build(Both), vectors(), **LINEAR)
    step(rewritten, vectors(8))
    before = run(rewritten, vectors(5), False)
    with pytest.warns(RegBNWarning, match="not folded: two.regbn_x"):
        folded = regbn_surgery.fold(rewritten, vectors())
    assert [name for name, m in folded.named_modules() if isinstance(m, RegBNSite)] == ["two.regbn_x"]
    assert type(folded.one) is Plain
    guarded = [name for name, m in folded.named_modules() if any(isinstance(h, Guard) for h in hooks_of(m))]
    assert guarded == ["two.enc_a", "two.enc_b"], "what is left is watched as before"
    torch.testing.assert_close(run(folded, vectors(5), False), before, rtol=1e-5, atol=1e-6)
    assert {report.host for report in explain(folded)} == {"two"}
    unregbnify(folded)
    assert not [m for m in folded.modules() if isinstance(m, RegBNSite)]


def hooks_of(module: nn.Module) -> list[Any]:
    return list(module._forward_pre_hooks.values())


def test_of_two_sites_in_one_forward_the_other_one_goes_on() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(6, 8)
            self.three, self.four = nn.Linear(5, 4), nn.Linear(5, 4)
            self.head, self.other = nn.Linear(12, 3), nn.Linear(12, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            first = self.head(torch.cat([self.one(a), self.three(b)], dim=-1))
            return first + self.other(torch.cat([self.two(a), self.four(b)], dim=-1).relu())

    rewritten = operate(build(Half), vectors(), **LINEAR)
    for seed in range(3):
        step(rewritten, vectors(8, seed))
    before = run(rewritten, vectors(5), False)
    with pytest.warns(RegBNWarning, match="not folded: regbn_x_"):
        folded = regbn_surgery.fold(rewritten, vectors())
    with counting(folded) as calls:
        torch.testing.assert_close(run(folded, vectors(5), False), before, rtol=1e-5, atol=1e-6)
    assert len(calls) == 1


@pytest.mark.parametrize("cls", [Plain, Nested])
def test_a_fold_that_turns_out_inexact_is_taken_back(cls: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    rewritten = trained(cls, **LINEAR)
    monkeypatch.setattr(_fold, "fold_into_linear", lambda regbn, linear, *_, **__: nn.Linear(12, 3))
    before, output = everything(rewritten), run(rewritten, vectors(5), False)
    with pytest.raises(RewriteError, match=f"Folding would change what {cls.__name__} computes: the output differs"):
        regbn_surgery.fold(rewritten, vectors(), inplace=True)
    assert everything(rewritten) == before
    assert torch.equal(run(rewritten, vectors(5), False), output)


def test_a_part_of_a_rewritten_model_is_not_operated_on() -> None:
    rewritten = trained(Nested, **LINEAR)
    with pytest.raises(RewriteError, match="Fusion carries no RegBN put in by regbnify"):
        regbn_surgery.freeze(rewritten.fusion)
    assert not site_of(rewritten).frozen


def test_a_model_without_regbn_is_told_so() -> None:
    for operate_on in (regbn_surgery.freeze, lambda model: regbn_surgery.fold(model, vectors())):
        with pytest.raises(RewriteError, match="carries no RegBN put in by regbnify"):
            operate_on(build(Plain))
