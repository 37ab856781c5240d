"""Who watches the layers of a site knows one call of a method from the next, one thread and one host from another."""

from __future__ import annotations

import sys
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regbn_surgery
from regbn_surgery import RegBNBypassedError

from .models import Joined, build, counting, rules, run, vectors


class Captioner(Joined):
    """Fuses in `forward`, and once more in `generate`; `features` asks for one branch by its name."""

    def generate(self, a: Tensor, b: Tensor) -> Tensor:
        f = self.enc_a(a)
        return self.head(torch.cat([f, self.enc_b(b)], dim=-1))

    def features(self, name: str, x: Tensor) -> Tensor:
        return self.get_submodule(f"enc_{name}")(x)


def operated(cls: type[nn.Module] = Captioner) -> Any:
    return regbn_surgery.regbnify(build(cls), rules(), vectors()).eval()


@pytest.mark.parametrize("traced", [False, True])
def test_a_loop_over_the_modalities_through_one_method_bypasses_nothing(traced: bool) -> None:
    """Each round calls the method from the same place, and its frame often lies where the last one's lay."""
    rewritten = operated()
    before = sys.gettrace()
    if traced:  # as under a debugger
        sys.settrace(lambda frame, event, arg: None)
    try:
        for _ in range(5):
            for name, x in vectors().items():
                assert rewritten.features(name, x).isfinite().all()
    finally:
        sys.settrace(before)
    for _ in range(2):
        with pytest.raises(RegBNBypassedError, match=r"Captioner\.generate"):
            rewritten.generate(**vectors())
    assert rewritten.features("a", vectors()["a"]).isfinite().all()


def test_what_a_call_held_is_let_go_when_it_is_over() -> None:
    rewritten = operated()

    def call() -> weakref.ref[Tensor]:
        x = vectors()["a"]
        rewritten.features("a", x)
        return weakref.ref(x)

    assert call()() is None


class Two(nn.Module):
    """A host around another one, of which it may call the wrong method."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Captioner()
        self.enc_a, self.enc_c = nn.Linear(6, 8), nn.Linear(5, 4)
        self.head = nn.Linear(12, 3)

    def forward(self, a: Tensor, b: Tensor, c: Tensor, generates: bool = False) -> Tensor:
        inner = self.inner.generate(a, b) if generates else self.inner(a, b)
        return self.head(torch.cat([self.enc_a(a), self.enc_c(c)], dim=-1)) + inner.mean()


def test_a_bypass_within_the_forward_of_another_host_is_noticed() -> None:
    given = {"version": 1, "rules": [{"id": "x", "match": {"kind": "concat"}, "normalize": "a"}]}
    inputs = {**vectors(), "c": vectors(seed=1)["b"]}
    rewritten = regbn_surgery.regbnify(build(Two), given, inputs).eval()
    with counting(rewritten) as calls:
        run(rewritten, inputs, training=False)
    assert dict(calls) == {"regbn_x": 1, "inner.regbn_x": 1}
    with pytest.raises(RegBNBypassedError, match=r"computes both sides of RegBN `regbn_x` .*Captioner at `inner`"):
        rewritten(**inputs, generates=True)


def test_another_threads_forward_excuses_nobody() -> None:
    rewritten = operated()
    errors: list[BaseException] = []

    def generate() -> None:
        try:
            rewritten.generate(**vectors())
        except RegBNBypassedError as error:
            errors.append(error)

    def meanwhile(*_: Any) -> None:
        thread = threading.Thread(target=generate)
        thread.start()
        thread.join(60)

    rewritten(**vectors())  # so that the call is known, and runs once
    handle = rewritten.head.register_forward_pre_hook(meanwhile)
    try:
        rewritten(**vectors())
    finally:
        handle.remove()
    assert len(errors) == 1


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Captioner()

    def forward(self, a: Tensor, b: Tensor, generates: bool = False) -> Tensor:
        return self.inner.generate(a, b) if generates else self.inner(a, b)


def test_the_method_that_is_named_is_the_outermost_of_the_users() -> None:
    rewritten = operated(Outer)
    with pytest.raises(RegBNBypassedError, match=r"^Outer\.forward \(.*test_guard\.py:\d+\) computes both sides"):
        rewritten(**vectors(), generates=True)


class Encoders(nn.Module):
    """torch's own encoders compute in another way, and other numbers, where anybody hooks them."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_a, self.enc_b = (nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.enc_a(a), self.enc_b(b)], dim=-1))


def test_layers_that_mind_a_hook_are_not_watched() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(4, 3, 8, generator=generator) for name in "ab"}
    rewritten: Any = regbn_surgery.regbnify(build(Encoders), rules(), inputs)
    with counting(rewritten) as calls:
        run(rewritten, inputs, training=False)
    assert dict(calls) == {"regbn_x": 1}
    assert not rewritten.enc_a._forward_pre_hooks
    assert not rewritten.enc_b._forward_pre_hooks
