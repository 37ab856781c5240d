"""An interrupt at any moment leaves torch, its modes and the user's model as they were.

The interrupts come from a timer, as Ctrl-C does, and at chosen lines of the package, which is the same on any machine.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ._folders import environment

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
@pytest.mark.parametrize(
    ("where", "what", "count"),
    [
        ("moments", "regbnify", 100),
        ("moments", "first call", 100),
        ("lines", "regbnify", 30),
        ("lines", "first call", 30),
        ("model", "inplace", 15),
        pytest.param("model", "copy", 15, marks=pytest.mark.slow),
        pytest.param("moments", "regbnify", 1000, marks=pytest.mark.slow),
        pytest.param("moments", "first call", 1000, marks=pytest.mark.slow),
        pytest.param("lines", "regbnify", 400, marks=pytest.mark.slow),
        pytest.param("lines", "first call", 400, marks=pytest.mark.slow),
        pytest.param("model", "inplace", 200, marks=pytest.mark.slow),
    ],
)
def test_interrupts(where: str, what: str, count: int) -> None:
    command = [sys.executable, "-m", "tests.cases._interrupting", where, what, str(count)]
    ran = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-1500:]
