"""A place in the user's code has one name, in whatever ways the interpreter comes to it."""

from __future__ import annotations

import dis
from collections.abc import Callable

import pytest

from regbn_surgery._trace._source import instruction_of


def leaves_early(f: Callable[..., int], flag: bool) -> int:
    """The compiler writes what stands under `finally` down for each way out."""
    try:
        if flag:
            return 1
    finally:
        f()
    return 2


def loops(f: Callable[..., int], flag: bool) -> int:
    """Before Python 3.12, the condition of a loop is written down before it and at its end."""
    while f(flag):
        flag = not flag
    return 2


def chooses(f: Callable[..., int], flag: bool) -> int:
    """Since Python 3.12, what follows a conditional expression is written down in each of its branches."""
    return f([1, 2] if flag else [2, 1])


@pytest.mark.parametrize("function", [leaves_early, loops, chooses])
def test_a_call_that_the_compiler_wrote_down_several_times_is_one_place(function: Callable[..., int]) -> None:
    code = function.__code__
    calls = [found.offset for found in dis.get_instructions(code) if found.opname == "CALL"]
    assert len({instruction_of(code, offset) for offset in calls}) == 1


def test_that_some_are_written_down_several_times() -> None:
    calls = [found for found in dis.get_instructions(leaves_early.__code__) if found.opname == "CALL"]
    assert len(calls) > 1


def two_calls(f: Callable[..., int]) -> int:
    return f(1) + f(1)


def test_two_calls_are_two_places() -> None:
    code = two_calls.__code__
    calls = [found.offset for found in dis.get_instructions(code) if found.opname == "CALL"]
    assert len({instruction_of(code, offset) for offset in calls}) == 2
