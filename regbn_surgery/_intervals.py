"""Means with 95 % intervals, for a handful of seeds; needs nothing beyond the standard library."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom; from 10 on the expansion below is close.
_FEW = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
_NORMAL = 1.959964


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, to three digits (Cornish and Fisher's expansion around the normal one)."""
    if freedom < 1:
        raise ValueError(f"a t distribution needs at least 1 degree of freedom, not {freedom}")
    if freedom <= len(_FEW):
        return _FEW[freedom - 1]
    z, n = _NORMAL, float(freedom)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half of its 95 % interval by Student's t; NaN as the half of a single value."""
    if not values:
        raise ValueError("no value to take the mean of")
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return mean, t_quantile(len(values) - 1) * spread / math.sqrt(len(values))
