"""RegBN in a host's own frame: what reads its results, what waits for it, and where it cannot go."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RegBNError
from regbn_surgery._surgery import explain, identity

from .models import counting, everything, forced, run, step, vectors


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 4)
        self.back = nn.Linear(8, 5)
        self.head = nn.Linear(12, 3)
        self.drop = nn.Dropout(0.5)


PAIR = {
    "version": 1,
    "modalities": {"a": ["a"], "b": ["b"]},
    "rules": [{"id": "p", "pair": {"f": "module:enc_a", "g": "module:enc_b"}}],
}


def operate(model: nn.Module) -> Any:
    return regbn_surgery.regbnify(model, PAIR, vectors())


class EarlyReader(Base):
    """f is read before g is computed."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = self.enc_a(a)
        doubled = x * 2
        shifted = doubled + 1
        y = self.enc_b(b)
        return self.head(torch.cat([x + shifted, y], -1))


def test_at_a_pair_every_later_reader_sees_the_result_and_early_ones_wait() -> None:
    model = EarlyReader()
    rewritten = operate(model)
    step(rewritten, vectors())
    rewritten.eval()
    f, g = rewritten.regbn_p.regbn(rewritten.enc_a(vectors()["a"]), rewritten.enc_b(vectors()["b"]))
    torch.testing.assert_close(run(rewritten, vectors()), rewritten.head(torch.cat([f + f * 2 + 1, g], -1)))
    (report,) = explain(rewritten)
    lines = [line.strip() for line in report.after.splitlines()]
    places = {word: next(i for i, line in enumerate(lines) if word in line) for word in ("enc_b(", "regbn_p(", "* 2")}
    assert places["enc_b("] < places["regbn_p("] < places["* 2"]
    before = [line.strip() for line in report.before.splitlines()]
    assert next(i for i, line in enumerate(before) if "* 2" in line) < next(
        i for i, line in enumerate(before) if "enc_b(" in line
    )


def test_with_identity_the_waiting_changes_nothing() -> None:
    model = EarlyReader()
    rewritten = operate(model)
    for batch in (2, 3, 6):
        with identity(rewritten):
            torch.testing.assert_close(run(rewritten, vectors(batch), False), run(model, vectors(batch), False))


class GFromF(Base):
    """g is computed from f, so that f' would have to exist before itself."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = self.enc_a(a)
        y = self.enc_b(b + self.back(x))
        return self.head(torch.cat([x, y], -1))


class WritesBetween(Base):
    """What would have to wait reads a tensor that is overwritten meanwhile."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = self.enc_a(a)
        scale = a.new_ones(len(a), 8)
        early = x * scale
        scale.mul_(3)
        y = self.enc_b(b)
        return self.head(torch.cat([early + x * scale, y], -1))


class WritesInTurn(Base):
    """What is overwritten is computed from f as well, so that all of it waits, in its order."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = self.enc_a(a)
        scale = torch.ones_like(x)
        early = x * scale
        scale.mul_(3)
        y = self.enc_b(b)
        return self.head(torch.cat([early + x * scale, y], -1))


@pytest.mark.parametrize(
    ("cls", "match"),
    [
        (GFromF, r"enc_b` is computed from `module:enc_a"),
        (WritesBetween, r"regbn_p.*cannot be inserted.*mul at .* reads"),
    ],
)
def test_what_cannot_wait_is_refused_and_the_model_left_alone(cls: type[Base], match: str) -> None:
    model = cls()
    before = everything(model)
    with pytest.raises(RegBNError, match=match):
        regbn_surgery.regbnify(model, PAIR, vectors(), inplace=True)
    assert everything(model) == before


@pytest.mark.parametrize("training", [False, True])
def test_writes_in_place_may_wait_with_what_they_write_to(training: bool) -> None:
    rewritten = operate(WritesInTurn())
    with identity(rewritten):
        torch.testing.assert_close(run(rewritten, vectors(), training), run(WritesInTurn(), vectors(), training))


class Aside(Base):
    """Other readers of f and g than the fusion call."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.enc_a(a), self.enc_b(b)
        return self.head(torch.cat([x, y], -1)), x.sum() + y.sum()


def test_at_a_fusion_point_only_the_calls_own_operands_are_replaced() -> None:
    model = Aside()
    rule = {"id": "p", "match": {"kind": "concat"}, "normalize": "a", "against": "b"}
    rewritten = regbn_surgery.regbnify(model, {**PAIR, "rules": [rule]}, vectors())
    step(rewritten, vectors())
    rewritten.eval()
    x, y = rewritten.enc_a(vectors()["a"]), rewritten.enc_b(vectors()["b"])
    joint, aside = run(rewritten, vectors())
    torch.testing.assert_close(aside, x.sum() + y.sum())
    torch.testing.assert_close(joint, rewritten.head(torch.cat(rewritten.regbn_p.regbn(x, y), -1)))


class Inplace(Base):
    """The target of an in-place sum: later readers see what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_b = nn.Linear(5, 8)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = self.enc_a(a)
        x += self.enc_b(b)
        return x * 2


def test_an_in_place_sum_is_normalised_and_its_later_readers_see_it() -> None:
    rule = {"id": "p", "match": {"kind": "sum"}, "normalize": "a", "against": "b"}
    rewritten = regbn_surgery.regbnify(Inplace(), {**PAIR, "rules": [rule]}, vectors())
    step(rewritten, vectors())
    rewritten.eval()
    f, g = rewritten.regbn_p.regbn(rewritten.enc_a(vectors()["a"]), rewritten.enc_b(vectors()["b"]))
    torch.testing.assert_close(run(rewritten, vectors()), (f + g) * 2)


class ByMode(Base):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x, y = self.enc_a(a), self.enc_b(b)
        if self.training:
            y = y + 1
        return self.head(self.drop(torch.cat([x, y], -1)))


@pytest.mark.parametrize("way", ["source", "mode"])
def test_a_side_that_another_call_makes_in_training_is_a_side_in_both_modes(way: str) -> None:
    model = ByMode()
    rule = {"id": "p", "match": {"kind": "concat"}, "normalize": "a", "against": "b"}
    with forced(way):
        rewritten: Any = regbn_surgery.regbnify(model, {**PAIR, "rules": [rule]}, vectors())
    twin = copy.deepcopy(model)
    for training in (True, False, True):
        with identity(rewritten), counting(rewritten) as calls:
            found = run(rewritten, vectors(), training)
        torch.testing.assert_close(found, run(twin, vectors(), training))
        assert calls == {"regbn_p": 1}


def test_generated_lines_are_shown_in_tracebacks() -> None:
    import traceback

    rewritten = operate(EarlyReader())
    rewritten(**vectors())

    def fail(*args: Any) -> None:
        raise ValueError("on purpose")

    rewritten.head.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="on purpose") as caught:
        rewritten(**vectors())
    text = "".join(traceback.format_exception(caught.value))
    assert "self.head(" in text
    assert "regbn_surgery EarlyReader.forward" in text
