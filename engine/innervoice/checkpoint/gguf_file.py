"""A GGUF file: its metadata, read in one pass, and the bytes of its tensors.

Format: docs/gguf.md of github.com/ggml-org/ggml, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from innervoice.files import check_readable

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MOST_DIMS: Final = 4
_MOST_NESTED: Final = 4  # arrays of arrays; files have them in no known use
_ALIGNMENT_KEY: Final = "general.alignment"
_SHOWN: Final = 40  # characters of a name in a message

# Value types by number: the scalars, and the two that have a length.
_SCALARS: Final = {
    number: np.dtype(name) for number, name in enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"))
} | {10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8")}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_LENGTH, _TYPE = struct.Struct("<Q"), struct.Struct("<I")


class BlockType(NamedTuple):
    """A type of tensor: how many numbers a block holds, in how many bytes."""

    name: str
    numbers: int
    num_bytes: int


BLOCK_TYPES: Final = {
    0: BlockType("F32", 1, 4), 1: BlockType("F16", 1, 2), 2: BlockType("Q4_0", 32, 18), 3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22), 7: BlockType("Q5_1", 32, 24), 8: BlockType("Q8_0", 32, 34), 9: BlockType("Q8_1", 32, 40),
    10: BlockType("Q2_K", 256, 84), 11: BlockType("Q3_K", 256, 110), 12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176), 14: BlockType("Q6_K", 256, 210), 15: BlockType("Q8_K", 256, 292),
    16: BlockType("IQ2_XXS", 256, 66), 17: BlockType("IQ2_XS", 256, 74), 18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50), 20: BlockType("IQ4_NL", 32, 18), 21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82), 23: BlockType("IQ4_XS", 256, 136), 24: BlockType("I8", 1, 1), 25: BlockType("I16", 1, 2),
    26: BlockType("I32", 1, 4), 27: BlockType("I64", 1, 8), 28: BlockType("F64", 1, 8), 29: BlockType("IQ1_M", 256, 56),
    30: BlockType("BF16", 1, 2), 34: BlockType("TQ1_0", 256, 54), 35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """A tensor's entry. shape: the slowest dimension first; start, num_bytes: where its blocks lie in the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """The metadata of a file. fields: values by key, arrays as lists, arrays of arrays as one flat list."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def read(cls, path: Path, *, texts: bool = True) -> GgufFile:
        """Read header, fields and tensor entries; the tensors stay in the file.

        texts: False leaves lists of strings empty, the vocabulary above all, which takes the most time.

        Raises FileNotFoundError, OSError, and ValueError for a file that is damaged, cut off, big-endian or
        of another version.
        """
        check_readable(path, "name a .gguf file")
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise ValueError(f"{path} cannot be read as GGUF (it is empty): download it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _Metadata(view, path, texts).file()

    def blocks(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """The bytes of a tensor, a copy. Raises OSError, and ValueError where the file became shorter."""
        made = np.empty(tensor.num_bytes, np.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(tensor.start)
            self._fill(made, tensor, file)
        return made

    def pieces(self, tensor: GgufTensor, most: int) -> Iterator[NDArray[np.uint8]]:
        """The bytes of a tensor piece by piece, each of `most` bytes but the last, and each in the memory of the one
        before; see `blocks`.
        """
        made = np.empty(min(most, tensor.num_bytes), np.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(tensor.start)
            for start in range(0, tensor.num_bytes, most):
                piece = made[: tensor.num_bytes - start]
                self._fill(piece, tensor, file)
                yield piece

    def _fill(self, part: NDArray[np.uint8], tensor: GgufTensor, file: FileIO) -> None:
        done = 0
        while done < len(part):
            num_read = file.readinto(part.data[done:])
            if not num_read:
                raise ValueError(
                    f"{self.path} was cut off while it was read, in tensor {tensor.name}: download it again"
                )
            done += num_read


class _Metadata:
    """A walk through a file's bytes. at: the offset of what comes next; texts: lists of strings are kept."""

    def __init__(self, view: mmap.mmap, path: Path, texts: bool) -> None:
        self._view, self._path, self._texts = view, path, texts
        self._size, self._at = len(view), 0

    def file(self) -> GgufFile:
        num_tensors, num_fields = self._header()
        self._expect(num_fields, 13, "fields")
        fields: dict[str, Any] = {}
        alignment = 32
        for _ in range(num_fields):
            key = self._string()
            if key in fields:
                self._refuse(f"key {key[:_SHOWN]!r} comes twice")
            kind = self._number(_TYPE)
            fields[key] = self._value(kind, 0)
            if key == _ALIGNMENT_KEY:
                alignment = self._checked_alignment(kind, fields[key])

        self._expect(num_tensors, 24, "tensors")
        entries = [self._entry() for _ in range(num_tensors)]
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in entries:
            if name in tensors:
                self._refuse(f"tensor {name[:_SHOWN]!r} comes twice")
            tensors[name] = self._tensor(name, shape, kind, start + offset)
        return GgufFile(self._path, fields, tensors)

    def _header(self) -> tuple[int, int]:
        """The numbers of tensors and of fields."""
        if self._take(4) != _MAGIC:
            self._refuse("it does not begin with GGUF")
        version = self._number(_TYPE)
        if int.from_bytes(version.to_bytes(4, "little")) in _VERSIONS:
            self._refuse("it is big-endian, which is not supported", "convert it to little-endian")
        if version not in _VERSIONS:
            self._refuse(f"it is of version {version}, and 2 and 3 are supported", "convert the model again")
        return self._number(_LENGTH), self._number(_LENGTH)

    def _value(self, kind: int, depth: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._numbers(_SCALARS[kind], 1)[0]
        if kind != _ARRAY:
            self._refuse(f"a value is of unknown type {kind}")
        return self._array(depth + 1)

    def _array(self, depth: int) -> list[Any]:
        if depth > _MOST_NESTED:
            self._refuse(f"arrays are nested more than {_MOST_NESTED} deep")
        kind, length = self._number(_TYPE), self._number(_LENGTH)
        if kind in _SCALARS:
            self._expect(length, _SCALARS[kind].itemsize, "values of an array")
            return self._numbers(_SCALARS[kind], length)
        if kind == _STRING:
            self._expect(length, 8, "strings of an array")
            return self._strings(length) if self._texts else self._pass_strings(length)
        if kind != _ARRAY:
            self._refuse(f"an array is of unknown type {kind}")
        self._expect(length, 12, "arrays of an array")
        return [value for _ in range(length) for value in self._array(depth + 1)]

    def _strings(self, length: int) -> list[str]:
        """Strings in a row: a vocabulary has hundreds of thousands, so the walk is written out."""
        view, size, at, unpack = self._view, self._size, self._at, _LENGTH.unpack_from
        made = []
        try:
            for _ in range(length):
                end = at + 8 + unpack(view, at)[0]
                if end > size:
                    self._refuse("it is cut off")
                made.append(view[at + 8 : end].decode())
                at = end
        except struct.error:
            self._refuse("it is cut off")
        except UnicodeDecodeError:
            self._refuse(f"the string at byte {at} is not UTF-8")
        self._at = at
        return made

    def _pass_strings(self, length: int) -> list[str]:
        """The same walk without the strings."""
        view, size, at, unpack = self._view, self._size, self._at, _LENGTH.unpack_from
        try:
            for _ in range(length):
                at += 8 + unpack(view, at)[0]
                if at > size:
                    self._refuse("it is cut off")
        except struct.error:
            self._refuse("it is cut off")
        self._at = at
        return []

    def _string(self) -> str:
        return self._strings(1)[0]

    def _numbers(self, dtype: np.dtype[Any], length: int) -> list[Any]:
        values: list[Any] = np.frombuffer(self._take(length * dtype.itemsize), dtype).tolist()
        return values

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset of a tensor."""
        name, num_dims = self._string(), self._number(_TYPE)
        if num_dims > _MOST_DIMS:
            self._refuse(f"tensor {name[:_SHOWN]!r} has {num_dims} dimensions, and {_MOST_DIMS} is the most")
        shape = tuple(self._number(_LENGTH) for _ in range(num_dims))[::-1]
        return name, shape, self._number(_TYPE), self._number(_LENGTH)

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> GgufTensor:
        if kind not in BLOCK_TYPES:
            self._refuse(
                f"tensor {name[:_SHOWN]!r} is of unknown type {kind}", "convert the model to another type"
            )
        block = BLOCK_TYPES[kind]
        if shape and shape[-1] % block.numbers:
            self._refuse(
                f"rows of tensor {name[:_SHOWN]!r} have {shape[-1]} numbers, not blocks of {block.numbers}"
            )
        num_bytes = math.prod(shape) // block.numbers * block.num_bytes
        if start + num_bytes > self._size:
            self._refuse(
                f"tensor {name[:_SHOWN]!r} ends at byte {start + num_bytes}, and the file has {self._size} bytes"
            )
        return GgufTensor(name, block.name, shape, start, num_bytes)

    def _checked_alignment(self, kind: int, value: Any) -> int:
        if kind != _UINT32 or value < 1 or value & (value - 1):
            self._refuse(f"{_ALIGNMENT_KEY} is no power of two in 32 bits")
        return int(value)

    def _number(self, form: struct.Struct) -> int:
        return int(form.unpack(self._take(form.size))[0])

    def _take(self, length: int) -> bytes:
        """The next bytes."""
        end = self._at + length
        if end > self._size:
            self._refuse("it is cut off")
        taken = self._view[self._at : end]
        self._at = end
        return taken

    def _expect(self, count: int, least: int, what: str) -> None:
        """Refuse more of something, at least so many bytes each, than the rest of the file holds."""
        if count * least > self._size - self._at:
            self._refuse(f"it announces {count} {what}, more than it has bytes for")

    def _refuse(self, reason: str, remedy: str = "download it again") -> NoReturn:
        raise ValueError(f"{self._path} cannot be read as GGUF ({reason}): {remedy}") from None
