"""Read MNIST's own IDX files (plain or gzipped), checking every count before believing it.

Format: http://yann.lecun.com/exdb/mnist: two zero bytes, a type byte (8: unsigned byte), the number of axes, the
axes as big-endian 32-bit integers, then the bytes.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from errors import ExampleError

_UNSIGNED_BYTE = 8
_PIECE = 1 << 20
#: Where `--mnist DIR` looks: the files themselves, or the folder that torchvision makes.
_FOLDERS = ("", "raw", "MNIST/raw")


def find_idx(folder: Path, stem: str, axes: int) -> Path:
    """The file of MNIST named `stem` ("train-images") in `folder`, under any of its usual names.

    Raises:
        ExampleError: there is none; the message says which names were tried.
    """
    names = [f"{stem}{mark}idx{axes}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    for sub in _FOLDERS:
        for name in names:
            if (folder / sub / name).is_file():
                return folder / sub / name
    if not folder.is_dir():
        raise ExampleError(
            f"--mnist {folder} is no folder. Give the one that holds MNIST's four files, or leave --mnist out to use "
            "scikit-learn's digits."
        )
    raise ExampleError(
        f"--mnist {folder}: has no such file: {names[0]} (also looked for: {', '.join(names[1:])}; "
        "also in raw/ and MNIST/raw/). "
        "Give the folder that holds MNIST's four files, or leave --mnist out to use scikit-learn's digits."
    )


def read_idx(path: Path, axes: int) -> np.ndarray:
    """An IDX file of unsigned bytes with `axes` axes, as a uint8 array.

    Raises:
        ExampleError: it is no such file, or has fewer or more bytes than its header announces.
    """
    try:
        with _open(path) as file:
            shape = _read_shape(file, path, axes)
            size = math.prod(shape)
            # One byte more than announced, so that a longer file is seen without unpacking all of it; piece by piece,
            # so that a forged size does not ask for memory that the file cannot fill.
            content = bytearray()
            while piece := file.read(min(size + 1 - len(content), _PIECE)):
                content += piece
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise ExampleError(f"cannot read {path}: {error}. Get the file again.") from error
    if len(content) != size:
        found = f"{len(content)}" if len(content) < size else "more"
        raise ExampleError(f"{path} announces {size} bytes of data and holds {found}. Get the file again.")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"  # by content: files lose and gain ".gz" on their way
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def _read_shape(file: BinaryIO, path: Path, axes: int) -> tuple[int, ...]:
    header = file.read(4 + 4 * axes)
    if len(header) < 4 + 4 * axes or header[:4] != bytes((0, 0, _UNSIGNED_BYTE, axes)):
        raise ExampleError(
            f"{path} is no IDX file of unsigned bytes with {axes} axes "
            f"(it begins with {header[:4].hex(' ') or 'nothing'}). Give MNIST's own files."
        )
    return struct.unpack(f">{axes}I", header[4:])
