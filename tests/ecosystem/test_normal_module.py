"""A rewritten model stays a normal module, in whatever way RegBN gets in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.surgery.models import Late, Nested, build, counting, operate, run, step, vectors

from ._as_a_module import SITUATIONS
from ._subject import DoesNotApplyError, Subject

#: A generated forward, a hook on arguments; in `make test-all` also a forward that runs as it is, a hook that tells
#: roles apart, several hosts, and a site at a scatter.
MODELS = ("pmr", "hf_blip_captioning")
MORE_MODELS = ("hf_vilt", "hf_lxmert", "fusenet", "hf_llava")
SLOW = ("other processes",)
SLOW_ON_LARGER_ONES = ("same with identity", "parametrize")


def is_slow(name: str, situation: str) -> bool:
    return name in MORE_MODELS or situation in SLOW or (name != "pmr" and situation in SLOW_ON_LARGER_ONES)


def parameters() -> list[Any]:
    return [
        pytest.param(
            name,
            situation,
            marks=pytest.mark.slow if is_slow(name, situation) else (),
            id=f"{name}-{situation}",
        )
        for name in (*MODELS, *MORE_MODELS)
        for situation in SITUATIONS
    ]


@pytest.mark.parametrize(("name", "situation"), parameters())
def test_situation(name: str, situation: str) -> None:
    try:
        SITUATIONS[situation](Subject(name))
    except DoesNotApplyError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_a_side_that_its_model_rounds_to_nothing_is_not_held_against_regbn() -> None:
    """In half precision all image features of this BLIP-2 are zero: such a batch is skipped, and counted."""
    SITUATIONS["other dtypes"](Subject("hf_blip2"))


def test_a_parameter_group_of_its_own() -> None:
    """RegBN's parameters by name, for an optimizer that treats them apart."""
    model = operate(build(Late), vectors(), regbn={"affine": True})
    ours = [p for name, p in model.named_parameters() if "regbn_" in name]
    theirs = [p for name, p in model.named_parameters() if "regbn_" not in name]
    before = [p.detach().clone() for p in ours]
    optimizer = torch.optim.SGD([{"params": theirs, "lr": 0.0}, {"params": ours, "lr": 0.1}])
    run(model, vectors(), training=True).square().mean().backward()
    optimizer.step()
    assert ours
    assert any(not torch.equal(old, new) for old, new in zip(before, ours, strict=True))


def test_a_child_is_replaced_after_the_surgery() -> None:
    model = operate(build(Nested), vectors())
    model.enc_a = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))
    model.fusion.out = nn.Linear(12, 9)
    with counting(model) as calls:
        assert run(model, vectors(), training=True).shape == (4, 9)
    assert list(calls.values()) == [1]


def test_a_rewritten_model_inside_another_one() -> None:
    inner = operate(build(Late), vectors())
    step(inner, vectors())

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner
            self.head = nn.Linear(3, 2)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.head(self.inner(a, b))

    outer = Outer()
    with counting(outer) as calls:
        step(outer, vectors(5))
    assert calls == {"inner.regbn_x": 1}
    assert any(key.startswith("inner.regbn_x.regbn.") for key in outer.state_dict())


def test_moved_to_the_meta_device_and_back() -> None:
    """As loaders of large models do: made without memory, then filled from a checkpoint."""
    model = operate(build(Late), vectors())
    step(model, vectors())
    expected = run(model, vectors(3), training=False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    empty = model.to("meta").to_empty(device="cpu")
    empty.load_state_dict(state)
    torch.testing.assert_close(run(empty, vectors(3), training=False), expected, rtol=0, atol=0)


def test_state_dict_loads_with_assign() -> None:
    model, other = operate(build(Late), vectors()), operate(build(Late), vectors())
    step(model, vectors())
    other.load_state_dict(model.state_dict(), assign=True)
    torch.testing.assert_close(run(other, vectors(3), False), run(model, vectors(3), False), rtol=0, atol=0)
