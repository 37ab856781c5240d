"""The command line: `regbn-surgery inspect`, `show`, `check`."""

from __future__ import annotations
