"""The path that a step takes on other devices, taken on the CPU."""

from __future__ import annotations

import pytest

from regbn_surgery.nn import _dense, _linalg, _norms, _presence, _running, functional


def go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no value is at hand, and lambda is found by inverses."""
    monkeypatch.setattr(functional, "solve_by_eigenvectors", functional.solve_by_inverses)
    for room in (_dense, _linalg, _norms, _presence, _running, functional):
        monkeypatch.setattr(room, "values_at_hand", lambda x: False)
