"""What a host's forward reads from itself becomes a guard, what it keeps on itself a second result."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regbn_surgery._errors import CaptureError
from regbn_surgery._trace import capture
from regbn_surgery._trace._recorder import UnrecordableError

from .replay import captured, make, run_graph


class Host(nn.Module):
    """Documented."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)
        self.alpha = 0.5
        self.mode = "sum"
        self.unused = 7
        self.last: Tensor | None = None

    def forward(self, a: Tensor) -> Tensor:
        a = self.lin(a) * self.alpha
        if self.mode == "sum" and self.training:
            a = a + 1
        self.last = a
        return a * 2


def test_plain_attributes_that_were_read_are_settings() -> None:
    host = Host()
    settings = captured(host, torch.ones(2, 3), strict=True).settings
    assert set(settings) == {"alpha", "mode", "training"}
    host.alpha = 0.25
    other = captured(host, torch.ones(2, 3), strict=True).settings
    assert {name for name in settings if other[name] != settings[name]} == {"alpha"}
    assert captured(host, torch.ones(2, 3)).settings == {}


def test_attributes_that_were_written_are_returned_beside_the_output() -> None:
    host = Host().eval()
    trace = captured(host, torch.ones(2, 3), strict=True)
    assert trace.stores == ("last",)
    output, stores = run_graph(host, trace, torch.ones(4, 3))
    torch.testing.assert_close(output, host(torch.ones(4, 3)), rtol=0, atol=0)
    torch.testing.assert_close(stores["last"], host.last, rtol=0, atol=0)


def test_what_is_stored_first_and_read_then_is_no_setting() -> None:
    def forward(self: Any, a: Tensor) -> Tensor:
        self.step = 3
        return a * self.step

    trace = captured(make(forward, step=0), torch.ones(2, 3), strict=True)
    assert trace.settings == {}
    assert trace.stores == ("step",)


def test_counting_is_refused_with_its_line() -> None:
    def forward(self: Any, a: Tensor) -> Tensor:
        self.calls += 1
        return a * self.calls

    module = make(forward)
    module.calls = 4
    with pytest.raises(UnrecordableError, match=r"test_watch\.py:\d+ .*`self\.calls`.* 5"):
        captured(module, torch.ones(2, 3), strict=True)
    module.calls = 4
    captured(module, torch.ones(2, 3))  # an inspection only looks


def test_what_children_do_to_themselves_is_theirs() -> None:
    def child(self: Any, a: Tensor) -> Tensor:
        self.calls += 1
        return a * self.calls

    inner = make(child)
    inner.calls = 0
    trace = captured(make(lambda self, a: self.inner(a), inner=inner), torch.ones(2, 3), strict=True)
    assert (trace.settings, trace.stores) == ({}, ())


@pytest.mark.parametrize("fails", [False, True])
def test_the_class_is_its_own_again_afterwards(fails: bool) -> None:
    seen: list[type] = []

    class Peeking(Host):
        """Also documented."""

        def forward(self, a: Tensor) -> Tensor:
            seen.append(type(self))
            assert isinstance(self, Peeking)
            if fails:
                raise ValueError("on purpose")
            return super().forward(a)

    host = Peeking()
    if fails:
        with pytest.raises(ValueError, match="on purpose"):
            captured(host, torch.ones(2, 3), strict=True)
    else:
        captured(host, torch.ones(2, 3), strict=True)
    assert type(host) is Peeking
    assert "__class__" not in host.__dict__
    watched = seen[0]
    assert (watched.__name__, watched.__qualname__, watched.__doc__) == (
        "Peeking", Peeking.__qualname__, Peeking.__doc__,
    )  # fmt: skip


def test_parameters_and_children_set_in_forward_are_registered_as_ever() -> None:
    def forward(self: Any, a: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.full((3,), 2.0))
        return a * self.scale

    module = make(forward)
    captured(module, torch.ones(2, 3))
    assert [name for name, _ in module.named_parameters()] == ["scale"]


@pytest.mark.parametrize("fails", [False, True])
def test_what_another_library_has_put_on_modules_is_asked_and_comes_back(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Such as one that checks what is assigned, put there after this package was imported."""
    usual_read, usual_write = nn.Module.__getattribute__, nn.Module.__setattr__
    read, written = [], []

    def reading(self: nn.Module, name: str) -> Any:
        read.append(name)
        return usual_read(self, name)

    def writing(self: nn.Module, name: str, value: Any) -> None:
        written.append(name)
        usual_write(self, name, value)

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.layer.seen = 1
            if fails:
                raise ValueError("of the model")
            return self.layer(x)

    model = Writes()
    monkeypatch.setattr(nn.Module, "__getattribute__", reading, raising=False)
    monkeypatch.setattr(nn.Module, "__setattr__", writing)
    read.clear()
    written.clear()
    with contextlib.suppress(ValueError, CaptureError):
        capture(model, (torch.ones(1, 2),), {}, leaf=lambda *_: True, strict=True)
    assert nn.Module.__getattribute__ is reading
    assert nn.Module.__setattr__ is writing
    assert "seen" in written
    assert "layer" in read or "forward" in read


def test_nothing_is_left_on_modules_that_was_not_there() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    capture(model, (torch.ones(1, 2),), {}, leaf=lambda *_: True, strict=True)
    assert "__getattribute__" not in vars(nn.Module)
    assert nn.Module.__setattr__.__module__ == "torch.nn.modules.module"
