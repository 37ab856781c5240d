"""MNIST's own files: every usual name, packed or not, and no belief in a header that the data does not bear out."""

import gzip
import struct

import numpy as np
import pytest
from errors import ExampleError
from idx import find_idx, read_idx

IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("name", ["x", "x.gz"])
def test_reads_plain_and_packed_by_content(tmp_path, pack, name):
    (tmp_path / name).write_bytes(pack(idx(IMAGES)))
    np.testing.assert_array_equal(read_idx(tmp_path / name, 3), IMAGES)


@pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images.idx3-ubyte", "train-images-idx3-ubyte.gz"])
def test_finds_the_usual_names(tmp_path, folder, name):
    file = tmp_path / folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    assert find_idx(tmp_path, "train-images", 3) == file


def test_says_what_is_missing(tmp_path):
    with pytest.raises(ExampleError, match=r"has no such file: t10k-labels-idx1-ubyte .*leave --mnist out"):
        find_idx(tmp_path, "t10k-labels", 1)
    with pytest.raises(ExampleError, match="is no folder"):
        find_idx(tmp_path / "absent", "t10k-labels", 1)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "begins with nothing"),
        (b"\x89PNG and so on, long enough", "begins with 89 50 4e 47"),
        (idx(IMAGES[0]), "no IDX file of unsigned bytes with 3 axes"),
        (idx(IMAGES)[:-1], "announces 60 bytes of data and holds 59"),
        (idx(IMAGES) + b"x", "announces 60 bytes of data and holds more"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12 + b"x", "holds 1"),
        (gzip.compress(idx(IMAGES), mtime=0)[:-9], "cannot read"),
        (gzip.compress(idx(IMAGES), mtime=0)[:12] + b"\xff\xff\xff", "cannot read"),
    ],
)
def test_refuses_what_is_damaged(tmp_path, raw, says):
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(ExampleError, match=says):
        read_idx(tmp_path / "x", 3)


def test_a_longer_file_is_not_unpacked_whole(tmp_path):
    """A small file that unpacks to much more than it announces is refused, not read into memory."""
    import tracemalloc

    (tmp_path / "x").write_bytes(gzip.compress(idx(IMAGES) + bytes(50_000_000), mtime=0))
    tracemalloc.start()
    with pytest.raises(ExampleError, match="holds more"):
        read_idx(tmp_path / "x", 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
