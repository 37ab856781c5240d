"""The results of finished runs in a folder, one file each, from which a stopped sweep goes on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._table import SweepError

_VERSION = 1


def _as_json(settings: Mapping[str, Any] | None) -> Any:
    """The settings as they are read back."""
    try:
        return json.loads(json.dumps(dict(settings or {}), sort_keys=True))
    except (TypeError, ValueError) as error:
        raise SweepError(f"settings must be what JSON can hold (numbers, texts, lists, dicts): {error}.") from error


class Stored:
    """`FOLDER/runs/VARIANT-seedN.json`: what a run returned, its settings, and a fingerprint of its rules.

    Args:
        settings: what else decides the results; a run that was finished with others counts as not finished.
        resume: take finished runs from the folder; without it a folder that holds some is refused.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None, *, resume: bool) -> None:
        self._settings = _as_json(settings)
        self._folder = folder / "runs"
        self._own_folders = folder
        if not resume and any(self._folder.glob("*.json")):
            raise SweepError(
                f"{folder} already contains finished runs. Continue them with resume=True (--resume), delete the "
                "folder, or give another one."
            )

    def read(self, variant: str, seed: int, fingerprint: str) -> dict[str, float] | None:
        """What the finished run returned; None where it has not been finished.

        Raises `SweepError` for a file that cannot be read, or of a run with other rules.
        """
        path = self._path(variant, seed)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            measured = {str(key): float(value) for key, value in content["measured"].items()}
            same = content["version"] == _VERSION and content["variant"] == variant and content["seed"] == seed
            rules, settings = content["rules"], content.get("settings", {})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise SweepError(f"{path} cannot be read ({error}): delete it to do this run again.") from error
        if not same or rules != fingerprint:
            raise SweepError(
                f"{path} was made with other rules than {variant!r} has now: delete it to do this run again, or give "
                "another folder."
            )
        return measured if settings == self._settings else None

    def write(self, variant: str, seed: int, fingerprint: str, measured: Mapping[str, float]) -> None:
        """Write a finished run in one move."""
        content = {"version": _VERSION, "variant": variant, "seed": seed, "rules": fingerprint}
        if self._settings:
            content["settings"] = self._settings
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(variant, seed)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps({**content, "measured": dict(measured)}, indent=1), encoding="utf-8")
        os.replace(part, path)

    def kept_words(self, done: int) -> str:
        """What has become of the runs before one that failed."""
        if not done:
            return ""
        runs = "1 finished run is" if done == 1 else f"{done} finished runs are"
        return f"\n{runs} kept in {self._folder}; continue there with resume=True (--resume)"

    def run_folder(self, variant: str, seed: int) -> Path:
        """The folder for files of one run."""
        return self._own_folders / f"seed{seed}" / _file_name(variant)

    def _path(self, variant: str, seed: int) -> Path:
        return self._folder / f"{_file_name(variant)}-seed{seed}.json"


def _file_name(variant: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", variant)
