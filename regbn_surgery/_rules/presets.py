"""Finds the presets: rules files that ship with the package and are used by name."""

from __future__ import annotations

import os
from pathlib import Path

from .._errors import RulesError
from .problems import did_you_mean, listing

_PACKAGE = Path(__file__).resolve().parent.parent


def preset_folder() -> Path | None:
    """Where the presets lie: beside the code in a wheel, at the top of the checkout in an editable install."""
    for folder in (_PACKAGE / "_presets", _PACKAGE.parent / "rules"):
        if folder.is_dir():
            return folder
    return None


def preset_names() -> tuple[str, ...]:
    """The names of all presets."""
    folder = preset_folder()
    return tuple(sorted(path.stem for path in folder.glob("*.yaml"))) if folder else ()


def preset_path(name: str) -> Path | None:
    """The file of a preset, unless `name` is a path or a file of that name exists (which then goes first)."""
    if name not in preset_names() or os.path.isfile(name):
        return None
    folder = preset_folder()
    return folder / f"{name}.yaml" if folder else None


def preset_text(name: str) -> str:
    """The content of a preset. Raises RulesError, with the names that there are."""
    folder = preset_folder()
    if folder is None or name not in preset_names():
        names = preset_names()
        raise RulesError(f"there is no preset {name!r}{did_you_mean(name, names)} (presets: {listing(names)})")
    return (folder / f"{name}.yaml").read_text(encoding="utf-8")


def preset_summary(name: str) -> str:
    """What a preset does, in the words of its first comment, up to the first full stop."""
    lines = []
    for line in preset_text(name).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines).partition(". ")[0].rstrip(".")
