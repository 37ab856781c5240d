"""`python -m regbn_surgery._cli.check_files FILE...`: what the pre-commit hook runs; needs no model and no torch."""

from __future__ import annotations

import sys

import click

from .._errors import RulesError
from .._rules import Rules
from .._visible import visible


def main(files: list[str]) -> int:
    """Write every problem of every file to stderr; 1 where there is one, else 0."""
    status = 0
    for file in files:
        try:
            Rules.load(file)
        except RulesError as error:
            click.echo(visible(str(error)), err=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
