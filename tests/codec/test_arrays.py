"""Arrays as other libraries give them: a shape, a type or a peak that cannot be meant is refused with it."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from innervoice.codec.audio import read_audio, read_channels, read_frame

SOUND = (0.4 * np.sin(np.arange(4000) / 9)).astype(np.float32)
PCM = (SOUND * 32767).astype(np.int16)


class OwnMethods(np.ndarray):
    """A subclass whose methods do something else."""

    def astype(self, *_: Any, **__: Any) -> Any:
        """Fail."""
        raise RuntimeError

    def __getitem__(self, _: Any) -> Any:
        return 5


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (SOUND[None], r"shape \[1, 4000\], 4000 channels: give time first"),
        (np.stack([SOUND, SOUND]), r"shape \[2, 4000\], 4000 channels: give time first"),
        (SOUND[None, None], r"shape \[1, 1, 4000\]"),
        (np.float32(0.5) * np.ones(()), r"type float64|shape \[\]"),
        (SOUND * 32768, r"peak is 1310.*, and floating point samples are in"),
        (np.where(np.arange(4000) == 7, np.float32(1e30), SOUND), r"peak is 1e\+30"),
        (np.where(np.arange(4000) == 7, np.float32(-1e30), SOUND), r"peak is 1e\+30"),
        (np.where(np.arange(4000) == 7, np.nan, SOUND), "sample 7 is nan"),
        (np.where(np.arange(4000) == 7, np.inf, SOUND), "sample 7 is inf"),
        (np.where(np.arange(4000) == 7, 1e300, SOUND.astype(np.float64)), "sample 7 is inf as float32"),
        (np.broadcast_to(np.float32(0.5), (10**6, 10**6)), "1000000 channels: at most 1024"),
        (PCM.astype(np.int32), r"int32 with a peak of 131\d\d.* give int16"),
        (SOUND.astype(np.complex64), "complex64"),
        (SOUND > 0, "are bool"),
        (SOUND.astype(object), "are object"),
        (PCM.astype(np.uint8), "are uint8"),
        (PCM.astype(np.int64), "are int64"),
        (np.ma.masked_array(SOUND, SOUND > 0), "of type MaskedArray"),
        (torch.from_numpy(SOUND), "of type Tensor"),
        (SOUND.tolist(), "of type list"),
        (np.zeros((0, 2), np.float32), "0 samples"),
        (np.zeros((4, 0), np.float32), r"shape \[4, 0\]"),
    ],
)
def test_an_array_that_is_no_sound_is_refused(array: Any, message: str) -> None:
    for read in (lambda: read_audio((array, 16000)), lambda: read_frame(array, 16000)):
        with pytest.raises(ValueError, match=message) as refused:
            read()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "array",
    [
        SOUND,
        SOUND[:, None],
        np.stack([SOUND, -SOUND], 1),
        SOUND.astype(np.float64),
        PCM.astype(">i2"),
        PCM.astype(np.int32) * 2**16,
        np.stack([PCM, PCM], 1)[::1],
        SOUND[::-1][::-1],
        SOUND.view(OwnMethods),
        SOUND * 2.5 * 4,  # clipped by nobody: louder than full scale, and still sound
    ],
)
def test_arrays_of_sound_are_read(array: np.ndarray) -> None:
    samples, rate = read_audio((array, np.int32(16000)))  # type: ignore[arg-type]
    loudness = np.abs(samples).max() / np.abs(SOUND).max()
    assert rate == 16000 and np.allclose(samples, SOUND * loudness, atol=2e-4)
    assert np.array_equal(read_frame(array, 16000), samples)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_is_an_array_of_one_channel() -> None:
    for read in (lambda array: read_audio((array, 16000))[0], lambda array: read_frame(array, 16000)):
        assert np.array_equal(read(np.matrix(SOUND).T), SOUND)


def test_a_channel_without_numbers_makes_no_other_silent(caplog: pytest.LogCaptureFixture) -> None:
    for wrong in (np.nan, np.inf):
        sound = np.stack([SOUND, np.full_like(SOUND, wrong)], 1)
        assert np.array_equal(read_audio((sound, 16000))[0], SOUND)
    assert not caplog.records


def test_silence_and_quiet_24_bit_sound_are_sound() -> None:
    assert not read_audio((0 * SOUND, 8000))[0].any()
    assert not read_audio((0 * PCM.astype(np.int32), 8000))[0].any()
    quiet = np.arange(-30, 30, dtype=np.int32) * 256  # left-justified, as 24-bit files are read
    assert np.array_equal(read_audio((quiet, 8000))[0], (quiet / 2**31).astype(np.float32))


def test_a_memoryview_is_what_it_says() -> None:
    for given in (PCM.tobytes(), bytearray(PCM.tobytes()), memoryview(PCM.tobytes()), memoryview(PCM)):
        assert np.array_equal(read_frame(given, 16000), PCM / np.float32(2**15))
    assert np.array_equal(read_frame(memoryview(SOUND), 16000), SOUND)
    assert np.array_equal(read_frame(memoryview(np.stack([SOUND, -SOUND], 1)), 16000), SOUND)
    with pytest.raises(ValueError, match="are uint16"):
        read_frame(memoryview(PCM.view(np.uint16)), 16000)
    with pytest.raises(ValueError, match="no whole number of int16"):
        read_frame(memoryview(b"abc"), 16000)


def six_channels() -> np.ndarray:
    made = np.zeros((len(SOUND), 6), np.float32)
    made[:, 2] = SOUND
    return made


@pytest.mark.parametrize(
    ("channels", "found"),
    [
        (six_channels(), "the first of 6 channels is silent and number 3 is not"),
        (np.stack([0 * PCM, PCM], 1), "the first of 2 channels is silent and number 2 is not"),
        (np.stack([SOUND, 0 * SOUND], 1), None),
        (np.stack([0 * SOUND, 0 * SOUND], 1), None),
        (np.stack([SOUND / 50, SOUND], 1), None),
    ],
)
def test_a_silent_first_channel_is_warned_of(
    channels: np.ndarray, found: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file = io.BytesIO()
    soundfile.write(file, channels, 16000, format="WAV")
    for source in ((channels, 16000), file.getvalue()):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "innervoice"):
            read_audio(source)
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * (found is not None)
        assert found is None or found in caplog.text
    caplog.clear()
    read_channels((channels, 16000))
    assert not caplog.records


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "array"])
def test_a_length_is_refused_before_anything_is_decoded(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source: Any = (SOUND, 16000)
    if form != "array":
        file = io.BytesIO()
        soundfile.write(file, SOUND, 16000, format=form)
        source = file.getvalue()

    def too_long(num_samples: int, rate: int) -> None:
        raise ValueError(f"{num_samples} samples at {rate} Hz")

    seen: list[tuple[int, int]] = []
    read_audio(source, lambda num_samples, rate: seen.append((num_samples, rate)))
    assert seen == [(4000, 16000)]
    monkeypatch.setattr("innervoice.codec.audio._channels", None)
    monkeypatch.setattr("innervoice.codec.audio._read_blocks", None)
    with pytest.raises(ValueError, match=r"^4000 samples at 16000 Hz$"):
        read_audio(source, too_long)
