"""The one error that the example raises on purpose: `PMR.py` prints its message and exits with 2, no traceback."""

from __future__ import annotations


class ExampleError(Exception):
    """Something the user gave cannot be used. The message says what, where, and what to do about it."""
