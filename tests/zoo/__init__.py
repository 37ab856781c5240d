"""A zoo of multimodal models with hand-written truth: where their modalities meet, and what RegBN would see there.

`CASES` is the registry; `test_zoo.py` holds the library to it. `pytest tests/zoo -k stage1` runs the first part.
"""

from . import handmade, hf
from ._case import ZooCase

CASES: tuple[ZooCase, ...] = (*handmade.CASES, *hf.CASES)

if len({case.name for case in CASES}) != len(CASES):
    raise ValueError("two zoo cases share a name")

__all__ = ["CASES", "ZooCase"]
