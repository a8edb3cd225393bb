"""Reading sound: formats, channels, integer scales, resampling, and what is refused."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from innervoice.codec.audio import Resampler, read_audio, read_channels, read_frame, resample

RATE = 16000
STEREO = np.stack([np.sin(np.arange(4000) * 0.05), np.full(4000, 0.25)], 1).astype(np.float32) * 0.5  # [T, C]


def tone(hz: float, rate: int, num: int) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(num) / rate).astype(np.float32)


def wav_bytes(samples: np.ndarray, rate: int = RATE, subtype: str = "FLOAT") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def test_path_bytes_and_array_agree(assets_dir: Path) -> None:
    path = assets_dir / "question.wav"
    data, rate = soundfile.read(path, dtype="int16")
    expected = data / np.float32(32768)
    for source in (
        path,
        str(path),
        path.read_bytes(),
        (data, rate),
        (expected, rate),
        (data.astype(np.int32) << 16, rate),
    ):
        samples, found = read_audio(source)
        assert found == 16000 and samples.dtype == np.float32
        assert np.array_equal(samples, expected)


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "FLOAT", 0),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_U8", 1e-2),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 5e-2),
    ],
)
def test_first_channel_of_every_format(tmp_path: Path, kind: str, subtype: str, tolerance: float) -> None:
    path = tmp_path / f"x.{kind.lower()}"
    soundfile.write(path, STEREO, 22050, format=kind, subtype=subtype)
    samples, rate = read_audio(path)
    assert rate == 22050 and samples.shape == (4000,)
    assert np.abs(samples - STEREO[:, 0]).max() <= tolerance


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_first_channel_of_arrays(dtype: type) -> None:
    samples, rate = read_audio((STEREO.astype(dtype), np.int64(8000)))
    assert rate == 8000 and type(rate) is int and samples.dtype == np.float32
    assert np.abs(samples - STEREO[:, 0]).max() < 5e-4


def test_long_file_is_read_in_blocks() -> None:
    long = np.arange(1 << 21, dtype=np.float32) / (1 << 21)
    assert np.array_equal(read_audio(wav_bytes(long))[0], long)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16"), ("WAV", "MS_ADPCM")],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_blocks_join_to_what_one_call_reads(
    kind: str, subtype: str, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "x"
    sound = np.stack([0.4 * tone(440.3, 24000, 72000)] * channels, 1)
    soundfile.write(made, sound, 24000, format=kind, subtype=subtype)
    whole, _ = soundfile.read(made, dtype="float32", always_2d=True)
    monkeypatch.setattr("innervoice.codec.audio._BLOCK", 10_007)
    np.testing.assert_allclose(read_audio(made)[0], whole[:, 0], atol=1e-6)
    np.testing.assert_allclose(read_channels(made.read_bytes())[0], whole, atol=1e-6)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(made.read_bytes(),))
    writer.start()
    assert np.array_equal(read_audio(pipe)[0], read_audio(made)[0])
    writer.join()


def test_a_header_with_many_channels_costs_no_more_memory_than_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.ones(3000, np.int16), 16000, format="WAV")
    data = bytearray(file.getvalue())
    data[22:24] = (1000).to_bytes(2, "little")
    read, asked = soundfile.SoundFile.read, []
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, num, **how: asked.append(num) or read(self, num, **how)
    )
    samples, _ = read_audio(bytes(data))
    assert len(samples) == 3 and sum(asked) <= 3


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_a_tone(rate: int) -> None:
    out = resample(tone(440, rate, rate), rate, RATE)
    assert out.dtype == np.float32 and len(out) == RATE
    inner = slice(500, -500)
    assert np.abs(out[inner] - tone(440, RATE, RATE)[inner]).max() < 2e-3


def test_resampling_removes_what_would_alias() -> None:
    out = resample(tone(15000, 48000, 48000), 48000, RATE)
    assert np.abs(out[500:-500]).max() < 1e-4


@pytest.mark.parametrize(
    ("num", "rate", "expected"), [(1, 192000, 1), (44101, 44100, 16001), (12345, 22050, 8958), (7, 16000, 7)]
)
def test_resampled_length_rounds_up(num: int, rate: int, expected: int) -> None:
    assert len(resample(np.ones(num, np.float32), rate, RATE)) == expected


@settings(deadline=None, max_examples=30, derandomize=True, database=None)
@given(
    rate=st.sampled_from([1000, 8000, 16000, 22050, 44100, 47999]), target=st.sampled_from([8000, 16000, 22050, 24000, 48000]),
    lens=st.lists(st.one_of(st.integers(0, 3), st.integers(0, 9000)), min_size=1, max_size=12), seed=st.integers(0, 99),
)  # fmt: skip
def test_resampled_chunks_join_to_what_the_whole_gives(
    rate: int, target: int, lens: list[int], seed: int
) -> None:
    wave = np.random.default_rng(seed).standard_normal(sum(lens)).astype(np.float32)
    resampler, parts = Resampler(rate, target), np.split(wave, np.cumsum(lens)[:-1])
    chunks = [resampler.push(part, number == len(lens) - 1) for number, part in enumerate(parts)]
    assert all(chunk.dtype == np.float32 for chunk in chunks)
    assert np.array_equal(np.concatenate(chunks), resample(wave, rate, target))
    assert sum(map(len, chunks)) == -(-len(wave) * target // rate)


def test_frames_are_copies_of_the_first_channel() -> None:
    for source in (STEREO, (STEREO * 32767).astype(np.int16), STEREO[:, 0].copy()):
        samples = read_frame(source, RATE)
        assert np.array_equal(samples, read_audio((source, RATE))[0])
        assert not np.shares_memory(samples, source)
    pcm = (STEREO[:, 0] * 32767).astype("<i2")
    for data in (pcm.tobytes(), bytearray(pcm.tobytes()), memoryview(pcm)):
        assert np.array_equal(read_frame(data, RATE), pcm / np.float32(32768))
    with pytest.raises(
        ValueError, match="frame: 5 bytes are no whole number of int16 samples: send 2 bytes a sample"
    ):
        read_frame(b"12345", RATE)


@pytest.mark.parametrize(
    ("container", "subtype"), [("AIFF", "PCM_24"), ("CAF", "ALAC_16"), ("W64", "PCM_16"), ("RF64", "PCM_16")]
)
def test_damaged_files_are_read_or_refused_and_nothing_is_printed(
    container: str, subtype: str, capfd: pytest.CaptureFixture[str]
) -> None:
    memory, draw = io.BytesIO(), np.random.default_rng(0)
    soundfile.write(memory, np.zeros(800), 16000, subtype, format=container)
    refused = 0
    for _ in range(60):
        data = bytearray(memory.getvalue())
        for _ in range(4):
            data[draw.integers(0, 100)] = draw.choice([0, 128, 255])
        try:
            read_audio(bytes(data))
        except ValueError as error:
            refused += "no audio that can be read" in str(error)
    assert refused > 5
    assert capfd.readouterr() == ("", "")


def test_truncated_file_gives_what_it_holds() -> None:
    """Never memory that the decoder did not fill."""
    whole = io.BytesIO()
    soundfile.write(whole, tone(440, RATE, 40000) * 0.5, RATE, format="MP3", subtype="MPEG_LAYER_III")
    samples, _ = read_audio(whole.getvalue()[: len(whole.getvalue()) // 2])
    assert 10000 < len(samples) < 30000 and np.abs(samples).max() < 0.6


def damaged(samples: np.ndarray, value: float) -> np.ndarray:
    samples = samples.copy()
    samples[7] = value
    return samples


GOOD = STEREO[:, 0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "empty"),
        (bytes(range(256)) * 9, "no audio that can be read"),
        (wav_bytes(GOOD)[:30], "no audio that can be read"),
        (wav_bytes(GOOD[:0]), "holds 0 samples"),
        (wav_bytes(damaged(GOOD, np.nan)), "sample 7 is nan"),
        (wav_bytes(damaged(GOOD, -np.inf)), "sample 7 is -inf"),
        ((damaged(GOOD, np.nan), RATE), "sample 7 is nan"),
        ((damaged(GOOD.astype(np.float64), 1e300), RATE), "sample 7 is inf"),
        ((GOOD[:0], RATE), "holds 0 samples"),
        ((GOOD, 0), "rate is 0, expected"),
        ((GOOD, -16000), "rate is -16000, expected"),
        ((GOOD, 999), "rate is 999, expected a whole number of Hz from 1000 to 384000"),
        ((GOOD, 10**12), "rate is 1000000000000, expected"),
        ((GOOD, 16000.5), "rate is 16000.5, expected"),
        ((GOOD, None), "rate is None, expected"),
        ((GOOD, True), "rate is True, expected"),
        ((GOOD[:, None, None], RATE), r"shape \[4000, 1, 1\], expected \[T\] or \[T, C\]"),
        ((np.array(3.0, np.float32), RATE), r"shape \[\], expected"),
        ((STEREO[:, :0], RATE), r"shape \[4000, 0\], expected"),
        ((GOOD > 0, RATE), "samples are bool, expected"),
        ((GOOD.astype(np.complex64), RATE), "samples are complex64, expected"),
        ((GOOD.tolist(), RATE), "of type list, expected a numpy array"),
        ((GOOD, RATE, 1), "tuple of 3 items, expected"),
        (3, "of type int, expected"),
        ("a\0b", "cannot be read"),
    ],
    ids=lambda value: (
        value if isinstance(value, str) and value.isprintable() else type(value).__name__
    ),  # files hold a date
)
def test_bad_sound_is_refused_in_one_sentence(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_audio(source)
    assert (
        "\n" not in str(caught.value) and " at 0x" not in str(caught.value) and len(str(caught.value)) < 200
    )


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.wav does not exist"):
        read_audio(tmp_path / "absent.wav")
    with pytest.raises(ValueError, match="is a directory: name one audio file"):
        read_audio(tmp_path)
    for name, data, message in (
        ("empty.wav", b"", "empty"),
        ("garbage.wav", b"RIFFxxxxWAVE" * 40, "no audio that can|0 samples"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message) as caught:
            read_audio(tmp_path / name)
        assert name in str(caught.value)
