"""A short run of the fuzzer (`python -m tests.rules.fuzz 100000` is the long one), and that it would see a fault."""

from __future__ import annotations

import pytest

from regbn_surgery import RulesError
from regbn_surgery._rules import Rules

from . import fuzz


def test_a_short_run() -> None:
    outcome = fuzz.fuzz(900, seed=1)
    assert outcome.faults == []
    assert outcome.good
    assert outcome.cases == 900
    assert outcome.refused > 600
    assert outcome.accepted > 10


def test_the_same_files_for_the_same_seed() -> None:
    assert list(fuzz.cases(60, 5)) == list(fuzz.cases(60, 5)) != list(fuzz.cases(60, 6))


@pytest.mark.parametrize("fault", [KeyError("x"), RecursionError(), RulesError("")])
def test_a_fault_is_told(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise fault

    monkeypatch.setattr(Rules, "from_text", broken)
    outcome = fuzz.fuzz(3)
    assert len(outcome.faults) == 3
    assert not outcome.good
    assert fuzz.main(["3"]) == 1
