"""What was written down before a change is undone once, whatever ends the run; torch's thread state is put back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from regbn_surgery._thread_state import ThreadState
from regbn_surgery._undo import _log, forget, guarded, guarding, later, undone


class Mode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_changes_are_undone_in_reverse(error: type[BaseException] | None) -> None:
    undoings: list[str] = []

    def run() -> str:
        later(lambda: undoings.append("first"))
        entry = later(lambda: undoings.append("second"))
        later(lambda: undoings.append("third"))
        undone(entry)
        undone(entry)
        forget(later(lambda: undoings.append("kept")))
        later(lambda: undoings.append("fourth"))
        if error is not None:
            raise error("on purpose")
        return "result"

    if error is None:
        assert guarded(run) == "result"
    else:
        with pytest.raises(error, match="on purpose"):
            guarded(run)
    assert undoings == ["third", "second", "fourth", "first"]
    assert _log.entries == []


def test_an_interrupt_while_undoing_is_made_good() -> None:
    undoings: list[str] = []

    def interrupted_once() -> None:
        undoings.append("began")
        if len(undoings) == 1:
            raise KeyboardInterrupt
        undoings.append("ended")

    def run() -> None:
        later(lambda: undoings.append("other"))
        later(interrupted_once)

    with pytest.raises(KeyboardInterrupt):
        guarded(run)
    assert undoings == ["began", "began", "ended", "other"]


def test_one_that_fails_does_not_keep_the_others() -> None:
    undoings: list[str] = []

    def fails() -> None:
        undoings.append("failed")
        raise ValueError("on purpose")

    @guarding
    def run() -> None:
        later(lambda: undoings.append("other"))
        later(fails)

    with pytest.raises(ValueError, match="on purpose"):
        run()
    assert undoings == ["failed", "other"]


def test_only_what_the_inner_run_changed_is_undone_at_its_end() -> None:
    undoings: list[str] = []

    def outer() -> None:
        later(lambda: undoings.append("outer"))
        guarded(lambda: later(lambda: undoings.append("inner")))
        assert undoings == ["inner"]

    guarded(outer)
    assert undoings == ["inner", "outer"]


def test_each_thread_has_a_list_of_its_own() -> None:
    undoings: list[str] = []

    def run() -> None:
        entry = later(lambda: undoings.append("ours"))
        thread = threading.Thread(target=lambda: (undone(entry), guarded(lambda: None)))
        thread.start()
        thread.join(60)
        assert undoings == []

    guarded(run)
    assert undoings == ["ours"]


def _leave_autocast_open() -> None:
    torch.autocast("cpu", dtype=torch.float16).__enter__()


def _leave_hooks_open() -> None:
    torch.autograd.graph.save_on_cpu().__enter__()


def _pop_all() -> None:
    while _get_current_function_mode_stack():
        _pop_mode()


CHANGES: dict[str, Callable[[], Any]] = {
    "gradients": lambda: torch.set_grad_enabled(False),
    "function mode": lambda: _push_mode(Mode()),
    "several": lambda: [_push_mode(Mode()) for _ in range(3)],
    "fewer": _pop_all,
    "exchanged": lambda: (_pop_all(), _push_mode(Mode())),
    "dispatch mode": lambda: Dispatch().__enter__(),
    "functions off": lambda: torch._C.DisableTorchFunction().__enter__(),
    "autocast": _leave_autocast_open,
    "hooks": _leave_hooks_open,
}


def seen() -> tuple[Any, ...]:
    nesting = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return (
        torch.is_grad_enabled(), list(_get_current_function_mode_stack()), list(_get_current_dispatch_mode_stack()),
        torch._C._get_torch_function_state(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(), nesting, torch._C._autograd._top_saved_tensors_default_hooks(True),
    )  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("under_a_mode", [False, True])
def test_what_torch_keeps_for_a_thread_is_put_back(change: str, under_a_mode: bool) -> None:
    def check() -> None:
        before, state = seen(), ThreadState()
        CHANGES[change]()
        if change != "fewer" or under_a_mode:
            assert seen() != before
        state.restore()
        assert seen() == before
        state.restore()
        assert seen() == before

    if under_a_mode:
        with Mode(), torch.autocast("cpu"), torch.no_grad(), Dispatch(), torch.autograd.graph.save_on_cpu():
            torch.set_grad_enabled(change == "gradients")
            check()
    else:
        check()
