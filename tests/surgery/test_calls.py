"""Which calls of a host are of one kind, and when what was captured at one size may serve at another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery._surgery import identity
from regbn_surgery._surgery._arguments import own_arguments
from regbn_surgery._surgery._calls import Known, is_free, kind_of
from regbn_surgery._surgery._local import Variant

from .models import build, counting, operate, run, vectors


class Host(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = nn.Linear(6, 8), nn.Linear(5, 4)
        self.head = nn.Linear(12, 3)

    def joined(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1))


class ByGradient(Host):
    """Asks what autograd does."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        scale = 5.0 if a.requires_grad else 1.0
        return self.joined(a, b) * (2.0 if torch.is_grad_enabled() else 3.0) * scale


class ByKind(Host):
    """Asks of which kind of numbers an argument is."""

    def forward(self, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        out = self.joined(a, b)
        if bias is not None:
            out = out + bias.to(out.dtype) * (7.0 if bias.dtype == torch.float64 else 1.0)
        return out


def assert_same(model: nn.Module, rewritten: nn.Module, example: dict[str, Any]) -> None:
    expected = run(model, example, training=False)
    with identity(rewritten), counting(rewritten) as calls:
        found = run(rewritten, example, training=False)
    torch.testing.assert_close(found, expected)
    assert calls


def test_gradients_make_another_kind_of_call() -> None:
    model = build(ByGradient)
    rewritten = operate(model, vectors())
    for _ in range(2):
        assert_same(model, rewritten, vectors())
        with torch.no_grad():
            assert_same(model, rewritten, vectors())
        assert_same(model, rewritten, {**vectors(), "a": vectors()["a"].requires_grad_()})


def test_another_kind_of_numbers_makes_another_kind_of_call() -> None:
    model = build(ByKind)
    rewritten = operate(model, vectors())
    for dtype in (torch.float32, torch.float64, torch.float32, torch.int64):
        assert_same(model, rewritten, {**vectors(), "bias": torch.ones(3, dtype=dtype)})


def known(sizes: tuple[int, ...], *, leaks: bool = False) -> Known:
    variant = Variant("", "", lambda *_: None, ("regbn_x",), (), (), leaks=leaks, stores=False)
    return Known(variant, sizes)


def test_a_variant_serves_at_the_sizes_it_was_seen_at_until_they_are_seen_not_to_matter() -> None:
    host = nn.Identity()
    found = known((2, 6))
    assert found.fits(host, (2, 6))
    assert not found.fits(host, (50, 6))
    found.see((3, 6))
    assert found.fits(host, (3, 6))
    assert not found.fits(host, (50, 6))
    found.see((8, 6))
    assert found.fits(host, (50, 6))
    assert not found.fits(host, (50, 7)), "of the other axis one size alone was seen"


def test_where_python_looked_at_a_size_no_other_one_is_believed() -> None:
    host = nn.Identity()
    found = known((2,), leaks=True)
    for size in (3, 8, 50):
        found.see((size,))
    assert found.fits(host, (50,))
    assert not found.fits(host, (51,))


@pytest.mark.parametrize(
    ("seen", "free"),
    [({2}, False), ({2, 3}, False), ({2, 3, 7}, False), ({2, 3, 8}, True), ({5, 6, 7, 8, 9, 10}, True)],
)
def test_sizes_that_are_far_apart_or_many_do_not_matter(seen: set[int], free: bool) -> None:
    assert is_free(seen) is free


class Counter:
    def __init__(self) -> None:
        self.count = 0
        self.held = torch.zeros(2)


def test_an_object_given_twice_is_one_object_in_a_trial_and_not_the_callers() -> None:
    counter, x = Counter(), torch.zeros(3)
    (first, y), named = own_arguments((counter, x), {"again": counter, "x": x})
    assert first is named["again"]
    assert first is not counter
    first.count += 1
    first.held += 1
    y += 1
    assert (counter.count, counter.held.tolist(), x.tolist()) == (0, [0, 0], [0, 0, 0])
    assert torch.equal(named["x"], y), "what is one tensor stays one"


def test_numbers_and_objects_are_left_out_of_a_kind_and_flags_are_not() -> None:
    kinds = [kind_of((0, True, ((int, 3), (float, 0.5), (bool, flag), (str, "x")))) for flag in (True, False)]
    assert kinds[0] == (0, True, (int, float, (bool, True), (str, "x")))
    assert kinds[0] != kinds[1]
