"""`python -m regbn_surgery` and the console script `regbn-surgery`."""

from __future__ import annotations

import gc
import io
import sys

from ._cli.commands import cli


def main() -> None:
    """Run the command line; exits with 0 (fine), 1 (a finding) or 2 (an input that cannot be used)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without `×` gets `?`, not a traceback
    # Importing torch and transformers makes a million objects that stay: to look for garbage among them takes a second.
    gc.set_threshold(100_000, 10, 10)
    cli(prog_name="regbn-surgery")


if __name__ == "__main__":
    main()
