"""G.711: 8-bit telephone sound to 16-bit samples and back, by tables.

Formulas: ITU-T G.711. Mu-law codes 14-bit samples, A-law 13-bit samples; a sample here is 16 bits wide, so
its lowest bits are lost.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from innervoice.types import Pcm16

_BIAS = 33  # added to a 14-bit magnitude of mu-law
_SIGN = 0x80


def decode_ulaw(data: bytes) -> Pcm16:
    """Decode mu-law bytes to samples [n]."""
    return _ulaw_samples()[np.frombuffer(data, dtype=np.uint8)]


def encode_ulaw(pcm: Pcm16) -> bytes:
    """Encode samples [n] as mu-law, one byte each."""
    return _ulaw_codes()[pcm.view(np.uint16)].tobytes()


def decode_alaw(data: bytes) -> Pcm16:
    """Decode A-law bytes to samples [n]."""
    return _alaw_samples()[np.frombuffer(data, dtype=np.uint8)]


def encode_alaw(pcm: Pcm16) -> bytes:
    """Encode samples [n] as A-law, one byte each."""
    return _alaw_codes()[pcm.view(np.uint16)].tobytes()


@cache
def _ulaw_samples() -> Pcm16:
    codes = ~np.arange(256, dtype=np.int32) & 0xFF  # sent inverted
    exponent, mantissa = codes >> 4 & 7, codes & 15
    magnitude = ((2 * mantissa + _BIAS << exponent) - _BIAS) * 4
    return np.where(codes & _SIGN, -magnitude, magnitude).astype(np.int16)


@cache
def _alaw_samples() -> Pcm16:
    codes = np.arange(256, dtype=np.int32) ^ 0x55  # sent with every other bit inverted
    exponent, mantissa = codes >> 4 & 7, codes & 15
    magnitude = np.where(exponent == 0, 2 * mantissa + 1, 2 * mantissa + 33 << np.maximum(exponent, 1) - 1)
    return np.where(codes & _SIGN, magnitude * 8, magnitude * -8).astype(np.int16)


def _all_samples() -> npt.NDArray[np.int32]:
    """Every 16-bit sample, at the index of its unsigned bits."""
    return np.arange(2**16, dtype=np.uint16).view(np.int16).astype(np.int32)


def _exponent(magnitude: npt.NDArray[np.int32], lowest: int) -> npt.NDArray[np.int32]:
    """The number of the segment, 0 to 7, where segment 0 ends below 2 ** lowest."""
    exponent: npt.NDArray[np.int32] = np.zeros_like(magnitude)
    for power in range(lowest, lowest + 7):
        exponent += magnitude >= 1 << power
    return exponent


@cache
def _ulaw_codes() -> npt.NDArray[np.uint8]:
    samples = _all_samples() >> 2
    magnitude = np.minimum(np.abs(samples), 8158) + _BIAS
    exponent = _exponent(magnitude, 6)
    mantissa = magnitude >> exponent + 1 & 15
    codes = np.where(samples < 0, _SIGN, 0) | exponent << 4 | mantissa
    packed: npt.NDArray[np.uint8] = (~codes & 0xFF).astype(np.uint8)
    return packed


@cache
def _alaw_codes() -> npt.NDArray[np.uint8]:
    samples = _all_samples() >> 3
    magnitude = np.where(samples < 0, -samples - 1, samples)
    exponent = _exponent(magnitude, 5)
    mantissa = magnitude >> np.maximum(exponent, 1) & 15
    codes = np.where(samples < 0, 0, _SIGN) | exponent << 4 | mantissa
    packed: npt.NDArray[np.uint8] = ((codes ^ 0x55) & 0xFF).astype(np.uint8)
    return packed
