"""The reader of pickled dicts: right on every way numpy ever wrote them, and deaf to what a hostile file asks for."""

import io
import os
import pickle
import random
import struct

import numpy as np
import pytest
from errors import ExampleError
from npy_dict import read_npy_dict

RNG = np.random.default_rng(0)
CONTENT = {
    "train_image": RNG.integers(0, 256, size=(3, 4, 4, 3), dtype=np.uint8),
    "train_label": np.array([1, 2, 3]),
    "test_image": np.asfortranarray(RNG.integers(0, 256, size=(2, 5), dtype=np.uint8)),
    "test_label": np.array([7.5, -1.0], dtype=">f4"),
}
HEADER = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"


def npy(pickled: bytes) -> bytes:
    """A `.npy` file around a pickle."""
    header = HEADER.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickled


def wrapped(content: object, protocol: int) -> bytes:
    array = np.empty((), dtype=object)
    array[()] = content
    return npy(pickle.dumps(array, protocol=protocol))


def read(tmp_path, raw: bytes):
    path = tmp_path / "colored.npy"
    path.write_bytes(raw)
    return read_npy_dict(path)


def assert_is_content(found) -> None:
    assert found.keys() == CONTENT.keys()
    for key, expected in CONTENT.items():
        assert found[key].dtype == expected.dtype
        np.testing.assert_array_equal(found[key], expected)


def test_reads_what_this_numpy_saves(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, CONTENT, allow_pickle=True)
    assert_is_content(read(tmp_path, buffer.getvalue()))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_every_protocol(tmp_path, protocol):
    assert_is_content(read(tmp_path, wrapped(CONTENT, protocol)))


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(("written", "core"), [(b"numpy.core.", "numpy 1"), (b"numpy._core.", "numpy 2")])
def test_reads_numpy_1_and_numpy_2(tmp_path, protocol, written, core):
    raw = wrapped(CONTENT, protocol).replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", written)
    assert written in raw, core
    assert_is_content(read(tmp_path, raw))


def test_reads_python_2(tmp_path):
    """As Python 2 wrote it: byte strings, among them the array's data, as SHORT_BINSTRING."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def array(dtype: bytes, order: bytes, shape: bytes, data: bytes) -> bytes:
        make = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        kind = b"cnumpy\ndtype\n(" + text(dtype) + b"K\x00K\x01tR(K\x03" + text(order)
        kind += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        return make + b"(K\x01(" + shape + b"t" + kind + b"\x89" + data + b"tb"

    image = array(b"u1", b"|", b"K\x02K\x02", text(bytes([0, 128, 200, 255])))
    label = array(b"i8", b"<", b"K\x01", text(struct.pack("<q", 9)))
    content = b"}(" + text(b"train_image") + image + text(b"train_label") + label + b"u"
    found = read(tmp_path, npy(b"\x80\x02" + array(b"O8", b"|", b"", b"](" + content + b"e") + b"."))
    np.testing.assert_array_equal(found["train_image"], np.array([[0, 128], [200, 255]], dtype=np.uint8))
    np.testing.assert_array_equal(found["train_label"], np.array([9]))


class Runs:
    """Pickles to a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("place", ["value", "key", "whole", "in an object array"])
def test_runs_nothing(tmp_path, protocol, place):
    marker = tmp_path / "marker"
    hostile = Runs(os.mkdir, str(marker))
    content = {
        "value": {**CONTENT, "extra": hostile},
        "key": {**CONTENT, hostile: 1},
        "whole": hostile,
        "in an object array": {**CONTENT, "extra": np.array([hostile], dtype=object)},
    }[place]
    with pytest.raises(ExampleError, match=r"refused: it names \w+\.mkdir"):
        read(tmp_path, wrapped(content, protocol))
    assert not marker.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cbuiltins\neval\n(X\x03\x00\x00\x001+1tR.",
        b"cnumpy\nload\n(X\x03\x00\x00\x00abctR.",
        b"cnumpy.testing._private.utils\nrunstring\n.",
        b"c__builtin__\neval\n.",
        b"cnpy_dict\n_ADMITTED\n.",
        b"\x82\x01.",  # EXT1: by a number registered with copyreg
        b"P1\n.",  # a persistent id
    ],
)
def test_refuses_other_names(tmp_path, pickled):
    with pytest.raises(ExampleError):
        read(tmp_path, npy(b"\x80\x02" + pickled))


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tX\x01\x00\x00\x00btR"


def dtype(code: bytes, state: bytes = b"NNN") -> bytes:
    made = b"cnumpy\ndtype\n(X" + struct.pack("<I", len(code)) + code + b"K\x00K\x01tR"
    return made + b"(K\x03X\x01\x00\x00\x00|" + state + b"K\x00K\x00K\x00tb"


@pytest.mark.parametrize(
    ("pickled", "why"),
    [
        (b"cnumpy\ndtype\n}X\x08\x00\x00\x00__call__K\x01sb.", "sets the state"),
        (b"cnumpy.core.multiarray\n_reconstruct\n}X\x01\x00\x00\x00aK\x01sb.", "sets the state"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\x00tX\x01\x00\x00\x00btR.", "no plain array"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00ziptR.", "another codec"),
        (dtype(b"V8") + b".", "no plain number"),
        (dtype(b"u1", b"K\x01NN") + b".", "structured"),
        (ARRAY + b"(K\x01(K\x08t" + dtype(b"O8") + b"\x89C\x08AAAAAAAAtb.", "raw bytes as Python objects"),
        (ARRAY + b"(K\x01(K\x09t" + dtype(b"u1") + b"\x89C\x08AAAAAAAAtb.", "8 bytes for an array"),
        (ARRAY + b"(K\x01(J\xff\xff\xff\xfft" + dtype(b"u1") + b"\x89C\x01Atb.", "impossible shape"),
        (ARRAY + b"(K\x01(K\x01tN\x89C\x01Atb.", "without a dtype"),
        (b"K\x01r\xff\xff\xff\x7f.", "memo number out of order"),  # believed, it is a memo of 16 GiB
        (b"\x82\x01.", "the instruction EXT1"),
        (b"K\x01\x85c__builtin__\nlist\n\x81.", "the instruction NEWOBJ"),
        (ARRAY + b"(K\x01(K\x01t" + dtype(b"u1") + b"\x89K\x01tb.", "with a int"),
    ],
)
def test_refuses_crooked_arrays(tmp_path, pickled, why):
    with pytest.raises(ExampleError, match=why):
        read(tmp_path, npy(b"\x80\x03" + pickled))


def test_every_truncation_is_an_error(tmp_path):
    raw = wrapped(CONTENT, 4)
    for length in range(0, len(raw), 3):
        with pytest.raises(ExampleError):
            read(tmp_path, raw[:length])


def test_damage_is_an_error_or_harmless(tmp_path):
    """Nothing but `ExampleError` comes out, whatever byte is changed."""
    raw, rng = wrapped(CONTENT, 3), random.Random(0)
    refused = 0
    for _ in range(1500):
        changed = bytearray(raw)
        changed[rng.randrange(len(raw))] = rng.randrange(256)
        try:
            read(tmp_path, bytes(changed))
        except ExampleError:
            refused += 1
    assert refused > 500


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no .npy file"),
        (b"PK\x03\x04 something else", "no .npy file"),
        (wrapped([1, 2], 4), "holds no dict"),
        (wrapped({"train_image": [1, 2]}, 4), "'train_image' is no array"),
        (wrapped({3: np.zeros(2)}, 4), "3 is no array"),
    ],
)
def test_says_what_is_wrong(tmp_path, content, says):
    with pytest.raises(ExampleError, match=says):
        read(tmp_path, content)


def test_plain_array_and_missing_file(tmp_path):
    np.save(tmp_path / "plain.npy", np.zeros((2, 3)))
    with pytest.raises(ExampleError, match=r"array of float64 of shape \(2, 3\), not a pickled dict"):
        read_npy_dict(tmp_path / "plain.npy")
    with pytest.raises(ExampleError, match="No such file"):
        read_npy_dict(tmp_path / "absent.npy")
    with pytest.raises(ExampleError, match="directory"):
        read_npy_dict(tmp_path)
