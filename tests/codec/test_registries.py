"""Speech codecs and codec families from outside: registered once, taken back once; formats out of range."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from innervoice.codec.registry import read_speech_codec, register_speech_codec
from innervoice.codec.residual_vq.families import CodecFamily, register_codec_family
from innervoice.codec.speech_codec import SpeechCodec, SpeechFormat


class Silent(SpeechCodec):
    num_codes = 8


def test_a_speech_codec_is_registered_once_and_taken_back_once(tmp_path: Path) -> None:
    codec = Silent()

    def read(encoder: Path | None, decoder: Path | None) -> Silent:
        return codec

    with pytest.raises(ValueError, match="reader is 3: pass a function"):
        register_speech_codec(3)  # type: ignore[arg-type]
    take_back = register_speech_codec(read)
    with pytest.raises(ValueError, match="registered already"):
        register_speech_codec(read)
    assert read_speech_codec(None, tmp_path) is codec
    take_back()
    take_back()
    again = register_speech_codec(read)
    take_back()
    assert read_speech_codec(None, tmp_path) is codec
    again()
    with pytest.raises((ValueError, FileNotFoundError)):
        read_speech_codec(None, tmp_path)


def test_a_family_s_name_is_given_once() -> None:
    parts: Any = [lambda *_: None] * 3
    with pytest.raises(ValueError, match="the codec family 'mimi' exists already"):
        register_codec_family(CodecFamily("mimi", *parts))
    with pytest.raises(ValueError, match="a codec family is 'mimi': pass a CodecFamily"):
        register_codec_family("mimi")  # type: ignore[arg-type]
    take_back = register_codec_family(CodecFamily("other", *parts))
    with pytest.raises(ValueError, match="'other' exists already"):
        register_codec_family(CodecFamily("other", *parts))
    take_back()
    take_back()
    register_codec_family(CodecFamily("other", *parts))()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_codes", 0),
        ("num_codes", "64"),
        ("sample_rate", 0),
        ("sample_rate", 22050.5),
        ("codes_per_frame", 0),
        ("codes_per_s", 0.0),
        ("codes_per_s", math.inf),
        ("codes_per_s", -5.0),
        ("lag_s", math.nan),
        ("lag_s", -1.0),
    ],
)
def test_a_format_out_of_range_is_refused(name: str, value: Any) -> None:
    fields: Any = {"num_codes": 64, "codes_per_s": 25.0, "sample_rate": 8000}
    assert SpeechFormat(**fields).codes_per_frame == 1
    with pytest.raises(ValueError, match=f"{name} is {value!r}: use a"):
        SpeechFormat(**(fields | {name: value}))
