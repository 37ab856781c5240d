"""Intervals of a handful of seeds are those of Student's t."""

from __future__ import annotations

import math

import pytest

from regbn_surgery._intervals import mean_and_half, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 300])
def test_the_quantile_is_students(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=5e-4)


def test_an_interval() -> None:
    mean, half = mean_and_half([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.3027 / 3**0.5)


def test_one_value_has_no_interval() -> None:
    mean, half = mean_and_half([0.5])
    assert mean == 0.5
    assert math.isnan(half)


def test_what_has_none() -> None:
    with pytest.raises(ValueError, match="no value"):
        mean_and_half([])
    with pytest.raises(ValueError, match="degree"):
        t_quantile(0)
