"""Bring a generated source to life: as a file that is imported, or as text that is typed at a prompt."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

_prompts = itertools.count(1)


def load(source: str, name: str, home: str, folder: Path) -> ModuleType:
    """Run a source as the module `name` and enter it into `sys.modules`.

    `home`: "file"; "prompt" (no source can be read again); "prompt with linecache" (as IPython keeps it).
    """
    if home == "file":
        return _imported(source, name, folder)
    module = ModuleType(name)
    sys.modules[name] = module
    filename = "<stdin>"
    if home == "prompt with linecache":
        filename = f"<ipython-input-{next(_prompts)}-{abs(hash(source)):x}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), module.__dict__)
    return module


def load_elsewhere(source: str, name: str, folder: Path) -> ModuleType:
    """Import the same source from another folder, with one more line on top, as another machine may have it."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    return _imported("# One more line on top.\n" + source, name, elsewhere)


@contextlib.contextmanager
def modules_forgotten(*names: str) -> Iterator[None]:
    """Take the modules out of `sys.modules` at the end."""
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def _imported(source: str, name: str, folder: Path) -> ModuleType:
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
