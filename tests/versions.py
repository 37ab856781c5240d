"""The core tests with other versions of Python, torch, numpy and transformers: `make test-versions`.

Each set gets a plain virtual environment of its own, and its line in `docs/versions.md`. Without arguments all sets are
run, which takes a download of several GB; names of sets run only these. `--python NAME=PATH` takes an environment that
is there already; with it and no names, only these are run. Exit code 1: a test failed, or a set that is installed
could not be run.

    python tests/versions.py newest floors
    python tests/versions.py --python floors=/envs/torch26/bin/python floors
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "versions.md"
CORE: tuple[str, ...] = ("tests/nn", "tests/trace", "tests/analysis", "tests/surgery", "tests/rules", "tests/plan")
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "jsonschema")
#: The floors of pyproject.toml, but for numpy, of which torch 2.6 and Python 3.11 want 1.26.
FLOORS = (
    "numpy==1.26.*", "networkx==3.0", "PyYAML==6.0.1", "pydantic==2.6.*", "click==8.1.*", "rich==13.0.*",
    "safetensors==0.4.*", "google-re2==1.1.*",
)  # fmt: skip


@dataclass(frozen=True)
class Versions:
    """One set: a Python by the name of its program, and what pip is asked for."""

    python: str
    wanted: tuple[str, ...]


SETS = {
    "floors": Versions("python3.11", ("torch==2.6.*", *FLOORS, "transformers==4.57.*")),
    "torch-2.6": Versions("python3.11", ("torch==2.6.*", "transformers==4.57.*")),
    "torch-2.10": Versions("python3.12", ("torch==2.10.*", "transformers==5.0.*")),
    "python-3.12": Versions("python3.12", ("torch", "transformers")),
    "python-3.13": Versions("python3.13", ("torch", "transformers")),
    "newest": Versions("python3.11", ("torch", "transformers")),
}
ASKED = (
    "import platform, torch, numpy, transformers; "
    "print(platform.python_version(), torch.__version__, numpy.__version__, transformers.__version__)"
)
HEAD = """# Versions

What is promised (`torch>=2.6`, Python 3.11 and newer) and the core tests that hold it: `{core}`, without the slow ones.
Written by `make test-versions` (`make test-versions SETS="newest floors"`: only these); a set whose Python is not on
the machine is left out. `commit` is the one that was measured.

| set | Python | torch | numpy | transformers | commit | passed | failed |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def environment(name: str, versions: Versions, folder: Path, index: str) -> Path | None:
    """The Python of a fresh environment for the set; None where the machine lacks it, or its packages (no network, no
    room: a CUDA build of torch takes 6 GB)."""
    program = shutil.which(versions.python)
    if program is None or subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode:
        print(f"{name}: no {versions.python} here", flush=True)
        return None
    home = folder / name
    if subprocess.run([program, "-m", "venv", "--clear", str(home)], check=False).returncode:
        print(f"{name}: NOT TESTED, since {versions.python} makes no environment (above)", flush=True)
        return None
    python = home / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    extra = ["--extra-index-url", index] if index else []
    installed = subprocess.run([*pip, *extra, *versions.wanted, *TOOLS, "-e", str(ROOT)], check=False)
    if installed.returncode:
        print(f"{name}: NOT TESTED, since pip could not install it (above)", flush=True)
        return None
    return python


def measured(name: str, python: Path) -> str | None:
    """Run the core tests and give the set's row; None where they could not be run."""
    asked = subprocess.run([str(python), "-c", ASKED], capture_output=True, text=True, check=False)
    if asked.returncode:
        print(f"{name}: NOT TESTED, since its packages cannot be imported:\n{asked.stderr}", flush=True)
        return None
    command = [str(python), "-m", "pytest", "-q", "-n", "1", "-p", "no:cacheprovider", "-m", "not slow", *CORE]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else run.stderr
    if run.returncode not in (0, 1) or not counted("passed", last):  # a run that broke off proves nothing
        print(f"{name}: NOT TESTED, since pytest ended with {run.returncode}:\n{(run.stdout + run.stderr)[-3000:]}")
        return None
    print(f"{name}: {last}", *re.findall(r"^FAILED .*|^ERROR .*", run.stdout, re.M), sep="\n  ", flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return row(name, [*asked.stdout.split(), commit.stdout.strip() or "?"], last)


def row(name: str, versions: list[str], summary: str) -> str:
    passed, failed, errors = (counted(word, summary) for word in ("passed", "failed", "error"))
    return "| " + " | ".join([name, *versions, str(passed), str(failed + errors)]) + " |"


def counted(word: str, summary: str) -> int:
    found = re.search(rf"(\d+) {word}", summary)
    return int(found[1]) if found else 0


def with_rows(text: str, rows: dict[str, str]) -> str:
    """The page with these rows exchanged or added."""
    known = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}
    kept = {name: row for name, row in known.items() if name in SETS} | rows
    head = HEAD.format(core=" ".join(CORE))
    return head + "".join(f"{kept[name]}\n" for name in SETS if name in kept)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(SETS)}; all, if none is named")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--folder", type=Path, default=ROOT / ".versions", help="where environments are made")
    parser.add_argument("--index", default="https://download.pytorch.org/whl/cpu", help="a further index, for torch")
    parser.add_argument("--no-page", action="store_true", help="leave docs/versions.md as it is")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.sets if name not in SETS]
    if unknown:
        parser.error(f"no set {', '.join(unknown)}; there are {', '.join(SETS)}")
    ready = {}
    for item in given.python:
        name, _, path = item.partition("=")
        if name not in SETS or shutil.which(path) is None:
            parser.error(
                f"--python {item}: NAME=PATH is wanted, a set ({', '.join(SETS)}) and the Python to run it with"
            )
        ready[name] = Path(path).absolute()  # not resolved: the link is what says which environment it is
    rows: dict[str, str] = {}
    broken = False
    for name in given.sets or ready or SETS:
        python = ready.get(name) or environment(name, SETS[name], given.folder, given.index)
        if python is None:
            continue
        found = measured(name, python)
        if found is None:
            broken = True
            continue
        rows[name] = found
        if not given.no_page:
            TABLE.write_text(with_rows(TABLE.read_text() if TABLE.exists() else "", rows), encoding="utf-8")
    return int(broken or any(not row.endswith("| 0 |") for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
