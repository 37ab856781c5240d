"""Measures the compatibility matrix and writes it as Markdown, from the top of the repository:

    python -m tests.ecosystem.matrix > docs/compatibility.md

What has been measured is kept in a file (`--results`), so that a run can be broken off and taken up again; `--fresh`
starts anew, `--again fail` measures the failing cells once more, `--no-run` only writes the page.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from . import _matrix
from ._matrix_page import page


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.worker:
        out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print must not be taken for results
        _matrix.serve(sys.stdin, out)
        return 0
    columns = _matrix.situations()
    names = [name for name in columns if not options.situations or name in options.situations]
    models = options.models or _models()
    results = Path(options.results)
    if options.fresh:
        results.unlink(missing_ok=True)
    if options.again:
        kept = [cell for cell in _matrix.read(results) if cell.status not in options.again]
        _matrix.write(results, kept)
    if not options.no_run:
        commit = options.commit or _commit()
        _matrix.run(models, names, results, workers=options.workers, limit=options.limit, tell=_tell, commit=commit)
    wanted = {(model, name) for model in models for name in names}
    found = {cell.key: cell for cell in _matrix.read(results)}
    cells = [found[model, name] for model in models for name in names if (model, name) in found]
    sys.stdout.write(page(cells, columns, _versions(), rows=len(models)))
    return 0 if len(cells) == len(wanted) and all(cell.status != "fail" for cell in cells) else 1


def _models() -> list[str]:
    from tests.zoo import CASES

    return [case.name for case in CASES]


def _commit() -> str:
    """Of the working folder; "" where that is no checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _tell(cell: _matrix.Cell) -> None:
    line = f"{cell.seconds:6.1f} s  {cell.status:4}  {cell.model}, {cell.situation}"
    sys.stderr.write(f"{line}: {cell.reason}\n" if cell.reason else f"{line}\n")


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "accelerate", "lightning", "onnxruntime")
    return {"Python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.path.join(tempfile.gettempdir(), "regbn_compatibility.jsonl")
    parser.add_argument("--results", default=default, help="file of measured cells (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="forget what has been measured")
    parser.add_argument("--again", nargs="+", choices=["pass", "fail", "n/a"], default=[], help="measure these anew")
    parser.add_argument("--no-run", action="store_true", help="write the page from what has been measured")
    parser.add_argument("--models", nargs="+", default=[], help="rows (default: the whole zoo)")
    parser.add_argument("--situations", nargs="+", default=[], help="columns (default: all)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one cell")
    parser.add_argument("--commit", default="", help="what is measured, where the folder is no checkout")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
