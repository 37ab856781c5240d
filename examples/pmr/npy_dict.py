"""Read a pickled dict of arrays from a `.npy` file without running anything that the file asks for.

The published coloured MNIST is `numpy.save(path, {...})`: a pickle inside a `.npy`, and `numpy.load` with
`allow_pickle=True` would call whatever such a file names. Here the names that a pickled array needs are answered
by inert stand-ins of our own, and every other name is an error. Not even numpy's own `__setstate__` sees the
file: the stand-ins collect the shape, the type code and the bytes, and check them before an array is made.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from errors import ExampleError

# Booleans and plain numbers of 1 to 8 bytes. "O" is let through for the 0-d wrapper that holds the dict.
_TYPE_CODE = re.compile(r"(?:b1|[iu][1248]|f[248]|O8?)")
_MEMO = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_NAMES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_INSTRUCTIONS = _MEMO | frozenset(_NAMES.split())
_LATIN_1 = frozenset({"latin1", "latin-1", "iso-8859-1"})


def read_npy_dict(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a dict saved by `numpy.save(path, {...})`, by numpy 1 or 2, Python 2 or 3.

    Raises:
        ExampleError: the file is missing, is no `.npy`, holds no dict of arrays, or names anything else than
            numpy's constructors of arrays (nothing of what it names is run).
    """
    try:
        with path.open("rb") as file:
            _read_header(file, path)
            pickled = file.read()
        _check_instructions(pickled)
        loaded = _ArrayUnpickler(io.BytesIO(pickled)).load()
    except OSError as error:
        raise ExampleError(f"cannot read {path}: {error.strerror or error}.") from error
    except _Refused as error:
        raise ExampleError(
            f"{path} was refused: {error}. Nothing in it was run. A coloured-MNIST file holds arrays of numbers "
            "and nothing else: get the file again from where you trust it."
        ) from error
    # What a broken stream makes the unpickler raise is not documented to be narrower than this.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
            OverflowError, MemoryError, ImportError, UnicodeDecodeError, RecursionError) as error:  # fmt: skip
        raise ExampleError(f"{path} is damaged or cut short ({error}). Get the file again.") from error
    return _arrays_of(loaded, path)


def _read_header(file: BinaryIO, path: Path) -> None:
    """Leaves `file` at the start of the pickle."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError) as error:  # a header is parsed as Python literals
        raise ExampleError(f"{path} is no .npy file. Give the file that numpy.save wrote.") from error
    if dtype != np.dtype(object) or shape != ():
        raise ExampleError(
            f"{path} holds an array of {dtype} of shape {shape}, not a pickled dict with train_image, train_label, "
            "test_image and test_label. Give the coloured-MNIST file."
        )


def _check_instructions(pickled: bytes) -> None:
    """Walk through the pickle without running it: only what builds dicts, lists and arrays, nothing out of measure.

    The unpickler believes the sizes and memo numbers that it reads, and a forged one makes it ask for gigabytes.
    """
    for count, (instruction, argument, _) in enumerate(pickletools.genops(io.BytesIO(pickled))):
        if instruction.name not in _INSTRUCTIONS:
            raise _Refused(f"it holds the instruction {instruction.name}")
        if instruction.name in _MEMO and not 0 <= int(argument) <= count:
            raise _Refused(f"it holds a memo number out of order, {argument}")


def _arrays_of(loaded: object, path: Path) -> dict[str, np.ndarray]:
    content = loaded.items[0] if isinstance(loaded, _Array) and loaded.items else None
    if not isinstance(content, Mapping):
        raise ExampleError(f"{path} holds no dict. Give the coloured-MNIST file.")
    arrays = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, _Array) or value.array is None:
            raise ExampleError(f"{path}: the entry {key!r} is no array of numbers. Give the coloured-MNIST file.")
        arrays[key] = value.array
    return arrays


class _Refused(pickle.UnpicklingError):
    """The file asks for something that an array of numbers does not need."""


class _Inert:
    """No attributes and no state, so that a BUILD instruction cannot alter a stand-in."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise _Refused(f"it sets the state of a {type(self).__name__}")


class _NdarrayType(_Inert):
    """Stands for the class `numpy.ndarray`, which a pickle only hands on to `_reconstruct`."""

    __slots__ = ()


class _Dtype:
    """A type code and a byte order: all that a dtype of numbers holds."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        """`state`: (version, byte order, subarray, names, fields, ...): the middle three must be empty."""
        version, order, *rest = state
        if version not in (3, 4) or _text(order) not in ("<", ">", "|", "=") or any(x is not None for x in rest[:3]):
            raise _Refused("it holds a structured or unknown dtype")
        self.order = _text(order)

    def to_numpy(self) -> np.dtype[Any]:
        if self.code.startswith("O"):
            raise _Refused("it reads raw bytes as Python objects")
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


class _Array:
    """An array in the making. `array` is set for numbers, `items` for the objects of an object array."""

    __slots__ = ("array", "items")

    def __init__(self) -> None:
        self.array: np.ndarray | None = None
        self.items: list[object] = []

    def __setstate__(self, state: Any) -> None:
        """`state`: (version, shape, dtype, is Fortran order, bytes or list of objects)."""
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype):
            raise _Refused("it holds an array without a dtype")
        if isinstance(content, list):
            self.items = content
        else:
            self.array = _array_from(content, dtype, shape, "F" if fortran else "C")


def _array_from(content: object, dtype: _Dtype, shape: object, order: object) -> np.ndarray:
    if isinstance(content, str):  # Python 2 wrote its bytes as str
        content = content.encode("latin-1")
    if not isinstance(content, (bytes, bytearray)):
        raise _Refused(f"it fills an array with a {type(content).__name__}")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise _Refused("it holds an array with an impossible shape")
    kind = dtype.to_numpy()
    if order not in ("C", "F") or math.prod(shape) * kind.itemsize != len(content):
        raise _Refused(f"it has {len(content)} bytes for an array of {kind} of shape {shape}")
    return np.frombuffer(content, dtype=kind).reshape(shape, order=order)  # type: ignore[call-overload]


class _MakeDtype(_Inert):
    __slots__ = ()

    def __call__(self, code: object, align: object = False, copy: object = True) -> _Dtype:
        text = _text(code)
        if not _TYPE_CODE.fullmatch(text):
            raise _Refused(f"it holds a dtype {text[:20]!r}, which is no plain number")
        return _Dtype(text)


class _Reconstruct(_Inert):
    """`numpy.core.multiarray._reconstruct(ndarray, (0,), b"b")`: an empty array, filled by BUILD afterwards."""

    __slots__ = ()

    def __call__(self, subtype: object, shape: object, typecode: object) -> _Array:
        if not isinstance(subtype, _NdarrayType):
            raise _Refused("it builds something that is no plain array")
        return _Array()


class _FromBuffer(_Inert):
    """`numpy.core.numeric._frombuffer(bytes, dtype, shape, order)`, which pickle protocol 5 uses."""

    __slots__ = ()

    def __call__(self, content: object, dtype: object, shape: object, order: object) -> _Array:
        if not isinstance(dtype, _Dtype):
            raise _Refused("it holds an array without a dtype")
        made = _Array()
        made.array = _array_from(content, dtype, shape, order)
        return made


class _Encode(_Inert):
    """`_codecs.encode(text, "latin1")`, how Python 3 writes bytes for protocol 2. No other codec."""

    __slots__ = ()

    def __call__(self, text: object, codec: object = "latin1") -> bytes:
        if not isinstance(text, str) or codec not in _LATIN_1:
            raise _Refused("it encodes text by another codec than latin-1")
        return text.encode("latin-1")


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise _Refused(f"it holds a {type(value).__name__} where a type code belongs")
    return value


_ADMITTED: dict[tuple[str, str], _Inert] = {
    ("numpy", "ndarray"): _NdarrayType(),
    ("numpy", "dtype"): _MakeDtype(),
    ("_codecs", "encode"): _Encode(),
    # numpy 1 calls the package `core`, numpy 2 `_core`.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Reconstruct() for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FromBuffer() for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the constructors of arrays (as stand-ins) and nothing else."""

    def __init__(self, file: BinaryIO) -> None:
        # latin-1 is what makes the bytes of a Python 2 pickle survive (the docs of numpy.load say so).
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        found = _ADMITTED.get((module, name))
        if found is None:
            raise _Refused(f"it names {module}.{name}")
        return found
