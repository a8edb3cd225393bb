"""Blocks of GGUF's tensors as numbers, and those of Q4_0 and Q4_1 as our int4, which they are.

A block has its scales as float16; a byte of two numbers has the earlier one in its low half. Products and sums are in
float32, each rounded, in the order of ggml's quants.c. One thread does it: each tensor is read in a few milliseconds.

Formats: ggml-common.h of github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from innervoice.model.quant import Int4Weight

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]

BLOCK = 32  # numbers of a block of Q4_0, Q4_1, Q8_0
_K_BLOCK = 256


def floats(data: Bytes, kind: str) -> Floats:
    """The numbers of blocks, [n]. data: the bytes of whole blocks; kind: one of `SUPPORTED`."""
    return _READERS[kind](data).reshape(-1)


def int4(data: Bytes, columns: int, *, has_minimum: bool) -> Int4Weight:
    """The rows of blocks of Q4_0, or of Q4_1, which have a minimum, as an int4 weight [N, columns].

    data: [N, bytes of a row]. A block has numbers 0 to 15 in the low halves of its bytes and 16 to 31 in the
    high ones; ours has neighbours in a byte.
    """
    head = 4 if has_minimum else 2
    blocks = data.reshape(len(data), -1, head + BLOCK // 2)
    halves = _halves(blocks[..., :head])  # [N, groups, 1 or 2]
    pairs = np.ascontiguousarray(blocks[..., head:]).view("<u2")  # [N, groups, 8], two bytes in each
    codes = np.empty((*pairs.shape[:2], 2, 8), np.uint8)
    codes[..., 0, :] = (pairs & 0xF) | (pairs >> 4 & 0xF0)
    codes[..., 1, :] = (pairs >> 4 & 0xF) | (pairs >> 8 & 0xF0)
    scale = torch.from_numpy(halves[..., 0].copy())
    minimum = torch.from_numpy(halves[..., 1].copy()) if has_minimum else None
    return Int4Weight(torch.from_numpy(codes.reshape(len(data), -1)), scale, minimum, columns, BLOCK)


def _halves(part: Bytes) -> NDArray[np.float16]:
    """Bytes [..., 2 n] as float16 [..., n]."""
    return np.ascontiguousarray(part).view("<f2")


def _floats(part: Bytes) -> Floats:
    return _halves(part).astype(np.float32)


def _nibbles(part: Bytes) -> Bytes:
    """The low halves of bytes [..., n], then the high ones -> [..., 2, n]."""
    return np.stack([part & 0xF, part >> 4], axis=-2)


def _bf16(data: Bytes) -> Floats:
    return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q8_0(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 2 + BLOCK)
    numbers = blocks[:, 2:].view(np.int8).astype(np.float32)
    numbers *= _floats(blocks[:, :2])
    return numbers


def _q4_0(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 2 + BLOCK // 2)
    numbers = _nibbles(blocks[:, 2:]).reshape(-1, BLOCK).astype(np.float32) - 8
    return numbers * _floats(blocks[:, :2])


def _q4_1(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 4 + BLOCK // 2)
    halves = _floats(blocks[:, :4])
    return _nibbles(blocks[:, 4:]).reshape(-1, BLOCK) * halves[:, :1] + halves[:, 1:]


def _q4_k(data: Bytes) -> Floats:
    """Eight groups of 32 with scales and minima of 6 bits: those of groups 0 to 3 in the low bits of 8 bytes, of 4 to
    7 in 4 more bytes, and their upper 2 bits above the former.
    """
    blocks = data.reshape(-1, 16 + _K_BLOCK // 2)
    halves, packed = _floats(blocks[:, :4]), blocks[:, 4:16].reshape(-1, 3, 4)
    first, second, rest = packed[:, 0], packed[:, 1], packed[:, 2]
    scales = np.concatenate([first & 0x3F, (rest & 0xF) | (first >> 2 & 0x30)], axis=1) * halves[:, :1]
    minima = np.concatenate([second & 0x3F, (rest >> 4) | (second >> 2 & 0x30)], axis=1) * halves[:, 1:]
    numbers = _nibbles(blocks[:, 16:].reshape(-1, 4, BLOCK)).reshape(-1, 8, BLOCK)
    return numbers * scales[..., None] - minima[..., None]


def _q6_k(data: Bytes) -> Floats:
    """Sixteen groups of 16 with scales of int8; of each number 4 bits in one place and 2 in another."""
    blocks = data.reshape(-1, 210)
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, BLOCK)
    packed = blocks[:, 128:192].reshape(-1, 2, 1, BLOCK)
    high = packed >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    numbers = (low | high << 4).astype(np.int8).reshape(-1, 16, 16) - np.int8(32)
    scales = blocks[:, 192:208].view(np.int8) * _floats(blocks[:, 208:])
    return numbers * scales[..., None]


_READERS: Mapping[str, Callable[[Bytes], Floats]] = {
    "F32": lambda data: data.view("<f4"),
    "F16": _floats,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}
SUPPORTED = tuple(_READERS)
