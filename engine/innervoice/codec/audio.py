"""Sound in: files, file bytes, arrays and frames -> float32 samples, of the first channel or of
all; another rate with soxr.

soundfile and soxr are imported where they are first used: arrays at the model's own rate need neither.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from innervoice.fields import Limits
from innervoice.types import AudioIn, Samples

if TYPE_CHECKING:
    import soundfile

_FULL_SCALE = {"int16": 2.0**15, "int32": 2.0**31}
_BLOCK = 1 << 20
MIN_RATE, MAX_RATE = 1000, 384_000  # Hz; what sound cards know, with room on both sides
SampleRate = Annotated[int, Limits(MIN_RATE, MAX_RATE, unit="Hz")]


def read_audio(source: AudioIn) -> tuple[Samples, int]:
    """The first channel as float32 [T], and its rate in Hz.

    source: a path, the bytes of a file (any format that libsndfile reads), or (samples [T] or [T, C], rate);
    integers are scaled to [-1, 1). Raises FileNotFoundError, or ValueError for what holds no usable sound.
    """
    samples, rate, where = _read(source, 1)
    check_samples(samples[:, 0], rate, where)
    return samples[:, 0], int(rate)


def read_channels(source: AudioIn) -> tuple[Samples, int]:
    """All channels as float32 [T, C], and the rate in Hz; otherwise as `read_audio`."""
    samples, rate, where = _read(source, None)
    for channel in samples.T:
        check_samples(channel, rate, where)
    return samples, int(rate)


def _read(source: AudioIn, most: int | None) -> tuple[Samples, int, str]:
    """The first channels [T, C] (None: all), the stated rate, and the source's name for messages."""
    if isinstance(source, tuple):
        if len(source) != 2:
            raise ValueError(f"audio is a tuple of {len(source)} items, expected (samples, rate)")
        return _channels(source[0], most), source[1], "audio"
    if isinstance(source, bytes):
        return *_decode(source, "audio bytes", most), "audio bytes"
    if isinstance(source, (str, os.PathLike)):
        where = os.fspath(source)
        return *_decode(_file_bytes(Path(source)), where, most), where
    raise ValueError(
        f"audio is of type {type(source).__name__}, expected a path, the bytes of a file, or (samples, rate)"
    )


def check_samples(samples: Samples, rate: int, where: str = "audio") -> None:
    """Raise ValueError unless samples [T] is at least one finite number and rate a whole
    number of Hz that sound has.
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(
            f"{where}: rate is {rate!r}, expected a whole number of Hz from {MIN_RATE} to {MAX_RATE}"
        )
    if samples.ndim != 1:
        raise ValueError(
            f"{where}: samples have shape {list(samples.shape)}, expected one channel [T]: take samples[:, 0]"
        )
    if len(samples) == 0:
        raise ValueError(f"{where} holds 0 samples: record or choose some sound")
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(
            f"{where}: sample {first} is {samples[first]}, expected finite numbers: export the sound again"
        )


def read_frame(pcm: np.ndarray | bytes | bytearray | memoryview, rate: int) -> Samples:
    """The first channel of a frame as float32 [T], a copy; pcm: as `read_audio` takes
    arrays, or the bytes of int16 mono.

    Raises ValueError for what is no sound, and for a frame of 0 samples.
    """
    if isinstance(pcm, bytes | bytearray | memoryview):
        num_bytes = memoryview(pcm).nbytes
        if num_bytes % 2:
            raise ValueError(
                f"frame: {num_bytes} bytes are no whole number of int16 samples: send 2 bytes a sample"
            )
        pcm = np.frombuffer(pcm, dtype="<i2")
    samples = _channels(pcm, 1)[:, 0]
    check_samples(samples, rate, "frame")
    return samples


def resample(samples: Samples, rate: int, target: int) -> Samples:
    """Samples [T] at `rate` Hz -> ceil(T * target / rate) samples at `target` Hz (soxr, high quality)."""
    if rate == target:
        return samples
    import soxr

    out = soxr.resample(samples, rate, target, "HQ")
    return _fit(out, resampled_len(len(samples), rate, target)).astype(np.float32, copy=False)


def resampled_len(num: int, rate: int, target: int) -> int:
    """Samples at `target` Hz of so many at `rate` Hz; a sample that is begun counts."""
    return -(-num * target // rate)


class Resampler:
    """Resamples a recording chunk by chunk; the joined result equals `resample` of the whole, bit for bit."""

    def __init__(self, rate: int, target: int) -> None:
        import soxr

        self._rate, self._target = rate, target
        self._stream = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
        self._num_in = self._num_out = 0

    def push(self, samples: Samples, is_last: bool) -> Samples:
        """The next samples [T], T from 0 on -> those that are ready, all the rest with the last ones."""
        self._num_in += len(samples)
        out: Samples = self._stream.resample_chunk(samples, last=is_last)
        if is_last:
            out = _fit(out, resampled_len(self._num_in, self._rate, self._target) - self._num_out)
        self._num_out += len(out)
        return out


def _fit(samples: Samples, num: int) -> Samples:
    """Cut, or filled with zeros: soxr rounds a length to the nearest, so one sample may be missing."""
    return np.pad(samples[:num], (0, max(0, num - len(samples))))


def _channels(array: Any, most: int | None) -> Samples:
    if not isinstance(array, np.ndarray):
        raise ValueError(
            f"audio samples are of type {type(array).__name__}, expected a numpy array [T] or [T, C]"
        )
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] == 0):
        raise ValueError(f"audio samples have shape {list(array.shape)}, expected [T] or [T, C] (time first)")
    channels = (array[:, None] if array.ndim == 1 else array)[:, :most]
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # an infinity is refused later, with its place
            return channels.astype(np.float32)
    if array.dtype.name in _FULL_SCALE:
        return (channels / _FULL_SCALE[array.dtype.name]).astype(np.float32)
    raise ValueError(f"audio samples are {array.dtype}, expected floating point in [-1, 1], int16 or int32")


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} does not exist: name an audio file") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a directory: name one audio file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error}): name an audio file") from None


def _decode(data: bytes, where: str, most: int | None) -> tuple[Samples, int]:
    if not data:
        raise ValueError(f"{where}: the file is empty (0 bytes): record or choose some sound")
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            return _read_blocks(file, most), file.samplerate
    except (soundfile.SoundFileError, RuntimeError) as error:
        why = getattr(error, "error_string", str(error))  # without the prefix that holds a memory address
        raise ValueError(
            f"{where}: no audio that can be read ({why}): use a WAV, FLAC, OGG or MP3 file"
        ) from None


def _read_blocks(file: soundfile.SoundFile, most: int | None) -> Samples:
    """Block by block (other channels are not kept) until nothing comes: a damaged
    file may hold less than it says.
    """
    blocks = [np.zeros((0, min(file.channels, most or file.channels)), np.float32)]
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block[:, :most].copy())
    return np.concatenate(blocks)
