"""Finds the presets: rules files that ship with the package and are used by name."""

from __future__ import annotations

import os
from pathlib import Path

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
