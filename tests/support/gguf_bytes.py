"""GGUF files byte by byte, from keys and values: also such as no writer makes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

SCALARS = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i"),
    "f32": (6, "<f"), "bool": (7, "<B"), "u64": (10, "<Q"), "i64": (11, "<q"), "f64": (12, "<d"),
}  # fmt: skip
STRING, ARRAY = 8, 9


def u32(number: int) -> bytes:
    """Pack a number into four bytes."""
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    """Pack a number into eight bytes."""
    return struct.pack("<Q", number)


def string(text: str) -> bytes:
    """Pack a text behind its length."""
    data = text.encode()
    return u64(len(data)) + data


def typed(kind: str, value: Any) -> tuple[int, bytes]:
    """The number of a type and the bytes of a value; kind: a scalar's, "str", or "[kind]" for an array of it."""
    if kind == "str":
        return STRING, string(value)
    if not kind.startswith("["):
        number, form = SCALARS[kind]
        return number, struct.pack(form, value)
    of = kind[1:-1]
    number = STRING if of == "str" else ARRAY if of.startswith("[") else SCALARS[of][0]
    return ARRAY, u32(number) + u64(len(value)) + b"".join(typed(of, one)[1] for one in value)


def field(key: str, kind: str, value: Any) -> bytes:
    """Pack a key, the type of its value, and the value."""
    number, data = typed(kind, value)
    return string(key) + u32(number) + data


def entry(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    """A tensor's entry; shape: the slowest dimension first."""
    dims = b"".join(map(u64, reversed(shape)))
    return string(name) + u32(len(shape)) + dims + u32(kind) + u64(offset)


def file(
    fields: Sequence[bytes] = (), entries: Sequence[bytes] = (), data: bytes = b"", *, version: int = 3
) -> bytes:
    """A whole file; data: of the tensors, which begin at a multiple of 32."""
    head = b"GGUF" + u32(version) + u64(len(entries)) + u64(len(fields)) + b"".join([*fields, *entries])
    return head + bytes(-len(head) % 32) + data
