"""Code of a user in files and at prompts: run in the same process, or by another Python in a folder."""

from __future__ import annotations

import linecache
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import regbn_surgery

#: A model in a file of its own, as the tests write it.
MODEL = """
import torch
from torch import nn


class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.fa, self.fb, self.head = nn.Linear(5, 8), nn.Linear(7, 8), nn.Linear(16, 3)

    def forward(self, a, b):
        return self.head(torch.cat([self.fa(a), self.fb(b)], 1))
"""
#: The same, where a helper function of the file makes f and another one joins.
WITH_HELPERS = """
import torch
from torch import nn


def encode(layer, x):
    return torch.relu(layer(x))


def fuse(*branches):
    return torch.cat(branches, 1)


class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.fa, self.fb, self.head = nn.Linear(5, 8), nn.Linear(7, 8), nn.Linear(16, 3)

    def forward(self, a, b):
        f, g = encode(self.fa, a), encode(self.fb, b)
        return self.head(fuse(f, g))
"""
#: The same, where the call cannot be written down as a graph.
WITH_A_VALUE = MODEL.replace(
    "        return self", "        if a.sum().item() > 1e9:\n            return a\n        return self"
)
#: The same, where a module that receives both branches joins them.
WITH_A_CHILD = """
import torch
from torch import nn


class Fuse(nn.Module):
    def forward(self, x, y):
        return torch.cat([x, y], 1)


class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.fa, self.fb, self.head = nn.Linear(5, 8), nn.Linear(7, 8), nn.Linear(16, 3)
        self.fuse = Fuse()

    def forward(self, a, b):
        return self.head(self.fuse(self.fa(a), self.fb(b)))
"""
SOURCES = {"forward": MODEL, "helpers": WITH_HELPERS, "value": WITH_A_VALUE, "child": WITH_A_CHILD}


def typed(source: str, filename: str, with_lines: bool) -> dict[str, Any]:
    """Run a source as a prompt does, and return its names. `with_lines`: it can be read again, as in IPython."""
    linecache.cache.pop(filename, None)
    if with_lines:
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = ModuleType("typed_at_a_prompt")
    sys.modules[module.__name__] = module
    exec(compile(source, filename, "exec"), module.__dict__)
    return vars(module)


def environment() -> dict[str, str]:
    """Return the environment in which another Python finds this very package."""
    package = str(Path(regbn_surgery.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def python(folder: Path, code: str, stdin: bool = False) -> str:
    """Run code by another Python in a folder, with this very package, and return what it prints.

    Raises:
        AssertionError: where the code fails, with what it said.
    """
    code = textwrap.dedent(code)
    command = [sys.executable] if stdin else [sys.executable, "-c", code]
    ran = subprocess.run(
        command,
        input=code if stdin else None,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.strip()
