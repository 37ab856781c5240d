"""Without gradients, and with the gradient mode as it was afterwards, whatever comes in between."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from regbn_surgery.nn._no_gradient import without_gradient


@pytest.mark.parametrize("before", [True, False])
def test_the_mode_is_off_inside_and_as_it_was_after(before: bool) -> None:
    with torch.set_grad_enabled(before):
        assert without_gradient(torch.is_grad_enabled)() is False
        assert torch.is_grad_enabled() is before


def test_a_failure_inside_puts_it_back() -> None:
    @without_gradient
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.is_grad_enabled()


def test_an_interrupt_right_after_the_mode_was_changed_puts_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `with torch.no_grad():` leaves it off: its `__enter__` is left before the `with` has begun."""
    change, changes = torch._C._set_grad_enabled, []

    def interrupted(mode: bool) -> None:
        change(mode)
        changes.append(mode)
        if len(changes) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch._C, "_set_grad_enabled", interrupted)
    with pytest.raises(KeyboardInterrupt):
        without_gradient(torch.ones)(2)
    assert changes == [False, True, True]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("before", [True, False])
def test_an_interrupt_at_any_line_leaves_the_mode(before: bool) -> None:
    wrapped, lines = without_gradient(torch.ones), 0
    code = wrapped.__code__  # type: ignore[attr-defined]

    def traced(at: int) -> None:
        def on_line(frame: types.FrameType, event: str, _: object) -> object:
            nonlocal lines
            if event == "line":
                lines += 1
                if lines == at:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return on_line

        nonlocal lines
        lines = 0
        sys.settrace(lambda frame, event, _: on_line if frame.f_code is code else None)
        try:
            wrapped(2)
        finally:
            sys.settrace(None)

    with torch.set_grad_enabled(before):
        traced(0)
        count = lines
        assert count > 5
        for at in range(1, count + 1):
            with pytest.raises(KeyboardInterrupt):
                traced(at)
            assert torch.is_grad_enabled() is before


def test_a_compiler_sees_the_mode() -> None:
    layer = torch.nn.Linear(2, 2)

    def step(x: torch.Tensor) -> torch.Tensor:
        return without_gradient(layer)(x) + layer(x)

    x = torch.ones(3, 2)
    found = torch.compile(step, backend="eager", fullgraph=True)(x)
    found.sum().backward()
    assert torch.equal(layer.weight.grad, torch.full((2, 2), 3.0))
