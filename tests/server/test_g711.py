"""G.711 against the tables of ITU-T G.711 and against the module that Python once carried."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest

from innervoice.server import g711
from innervoice.types import Pcm16

LAWS = {"ulaw": (g711.decode_ulaw, g711.encode_ulaw), "alaw": (g711.decode_alaw, g711.encode_alaw)}
EVERY_CODE = bytes(range(256))
EVERY_SAMPLE = np.arange(-32768, 32768, dtype=np.int32).astype(np.int16)


@pytest.mark.parametrize(
    ("decode", "code", "sample"),
    [
        (g711.decode_ulaw, 0xFF, 0),
        (g711.decode_ulaw, 0x7F, 0),
        (g711.decode_ulaw, 0x80, 32124),
        (g711.decode_ulaw, 0x00, -32124),
        (g711.decode_alaw, 0xD5, 8),
        (g711.decode_alaw, 0x55, -8),
        (g711.decode_alaw, 0xAA, 32256),
        (g711.decode_alaw, 0x2A, -32256),
    ],
)
def test_known_codes(decode: Callable[[bytes], Pcm16], code: int, sample: int) -> None:
    assert decode(bytes([code])).tolist() == [sample]


@pytest.mark.parametrize("law", LAWS)
def test_every_code_comes_back(law: str) -> None:
    decode, encode = LAWS[law]
    back = encode(decode(EVERY_CODE))
    same = EVERY_CODE if law == "alaw" else EVERY_CODE.replace(b"\x7f", b"\xff")  # mu-law has two zeros
    assert back == same


@pytest.mark.parametrize("law", LAWS)
def test_a_sample_changes_by_a_small_share_of_itself(law: str) -> None:
    decode, encode = LAWS[law]
    error = np.abs(decode(encode(EVERY_SAMPLE)).astype(np.int32) - EVERY_SAMPLE)
    assert (error <= np.maximum(np.abs(EVERY_SAMPLE.astype(np.int32)) / 24, 16) + 650 * (law == "ulaw")).all()


@pytest.mark.parametrize("law", LAWS)
def test_all_codes_and_samples_are_those_of_audioop(law: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        audioop = pytest.importorskip("audioop")  # gone since Python 3.13
    decode, encode = LAWS[law]
    assert decode(EVERY_CODE).tobytes() == getattr(audioop, f"{law}2lin")(EVERY_CODE, 2)
    assert encode(EVERY_SAMPLE) == getattr(audioop, f"lin2{law}")(EVERY_SAMPLE.tobytes(), 2)


def test_samples_of_a_stride_are_encoded_too() -> None:
    stereo = np.stack([EVERY_SAMPLE[::97], EVERY_SAMPLE[::-97][: len(EVERY_SAMPLE[::97])]], axis=1)
    assert g711.encode_ulaw(stereo[:, 0]) == g711.encode_ulaw(stereo[:, 0].copy())
