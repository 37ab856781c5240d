"""One warning where Python or torch is newer than what this release was tried with; never a refusal."""

from __future__ import annotations

import re
import sys

import torch

from ._codes import coded
from ._user_code import warn_at_call

#: The newest that the tests have passed with: docs/versions.md.
TESTED = {"Python": (3, 13), "torch": (2, 15)}
_told: set[str] = set()


def tell_untested() -> None:
    """Warn, once in a process, of a Python or torch that is newer than `TESTED`."""
    numbers = re.match(r"(\d+)\.(\d+)", torch.__version__)
    found = {"Python": sys.version_info[:2], "torch": tuple(map(int, numbers.groups())) if numbers else (0, 0)}
    new = [name for name, version in found.items() if version > TESTED[name] and name not in _told]
    if new:
        _told.update(new)
        which = " and ".join(f"{name} {found[name][0]}.{found[name][1]}" for name in new)
        known = " and ".join(f"{name} {TESTED[name][0]}.{TESTED[name][1]}" for name in new)
        text = (
            f"{which} is newer than what this release of regbn_surgery was tried with (up to {known}). The rewritten "
            "model is compared with the original as always; `verify(model, example_inputs)` shows the result."
        )
        warn_at_call(coded("RB411", text))
