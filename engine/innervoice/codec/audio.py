"""Sound in: files, file bytes, arrays and frames -> float32 samples, of the first channel or of
all; another rate with soxr.

soundfile and soxr are imported where they are first used: arrays at the model's own rate need neither.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from innervoice.fields import Limits, shown
from innervoice.files import named, read_bytes
from innervoice.types import AudioIn, Samples

if TYPE_CHECKING:
    import soundfile

log = logging.getLogger("innervoice")

_FULL_SCALE = {"int16": 2.0**15, "int32": 2.0**31}
_BLOCK = 1 << 20  # samples of all channels
_UNKNOWN_LEN = 2**62  # frames of a file whose header has no length
_BYTE_FORMATS = ("B", "b", "c")
_MOST_CHANNELS = 8  # of a sound with fewer samples than that
_MOST_OF_ALL = 1024  # channels; libsndfile knows no more
_SILENCE = 1e-3  # of the loudest channel's peak: 60 dB below it
MOST_PEAK = 16.0  # of floating point samples: 24 dB above full scale
CheckLen = Callable[[int, int], None]
MIN_RATE, MAX_RATE = 1000, 384_000  # Hz; what sound cards know, with room on both sides
SampleRate = Annotated[int, Limits(MIN_RATE, MAX_RATE, unit="Hz")]


def read_audio(source: AudioIn, check_len: CheckLen | None = None) -> tuple[Samples, int]:
    """The first channel as float32 [T], and its rate in Hz.

    source: a path, the bytes of a file (any format that libsndfile reads), or (samples [T] or [T, C], rate);
    integers are scaled to [-1, 1). check_len: called with the number of samples and the rate, as an array or
    a file's header has them, before anything is decoded or copied; it raises for a sound that is too long. A
    first channel that is silent while another is not is logged. Raises FileNotFoundError, or ValueError for
    what holds no usable sound.
    """
    samples, rate, where = _read(source, 1, check_len)
    check_samples(samples[:, 0], rate, where)
    return samples[:, 0], int(rate)


@contextmanager
def naming(source: AudioIn) -> Iterator[None]:
    """Name a file in a ValueError about its sound that does not."""
    try:
        yield
    except ValueError as error:
        name = str(os.fspath(source)) if isinstance(source, str | os.PathLike) else None
        if name is None or name in str(error) or type(error) is not ValueError:
            raise
        raise ValueError(f"{name}: {error}") from None


def read_channels(source: AudioIn) -> tuple[Samples, int]:
    """All channels as float32 [T, C], and the rate in Hz; otherwise as `read_audio`."""
    samples, rate, where = _read(source, None, None)
    for channel in samples.T:
        check_samples(channel, rate, where)
    return samples, int(rate)


def _read(source: AudioIn, most: int | None, check_len: CheckLen | None) -> tuple[Samples, int, str]:
    """The first channels [T, C] (None: all), the stated rate, and the source's name for messages."""
    if isinstance(source, tuple):
        if len(source) != 2:
            raise ValueError(
                f"audio is a tuple of {len(source)} items, expected (samples, rate): give several prompts as a list"
            )
        array = _checked_array(source[0])
        rate = _checked_rate(source[1], "audio")
        if check_len is not None:
            check_len(len(array), rate)
        if most is not None and array.ndim == 2:
            warn_of_silence(channel_peaks(array), "audio")
        return _channels(array, most), rate, "audio"
    if isinstance(source, bytes):
        return *_decode(source, "audio bytes", most, check_len), "audio bytes"
    if isinstance(source, (str, os.PathLike)):
        try:
            where = named(source)
        except Exception as error:  # of an object's own method
            raise ValueError(f"audio is {shown(source)}, which has no path ({error}): give a path") from None
        return *_decode(read_bytes(source, "name one audio file"), where, most, check_len), where
    raise ValueError(
        f"audio is of type {type(source).__name__}, expected a path, the bytes of a file, or (samples, rate)"
    )


def _checked_rate(rate: Any, where: str) -> int:
    """A whole number of Hz that sound has. Raises ValueError."""
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(
            f"{where}: rate is {shown(rate)}, expected a whole number of Hz from {MIN_RATE} to {MAX_RATE}"
        )
    return int(rate)


def check_samples(samples: Samples, rate: int, where: str = "audio") -> None:
    """Raise ValueError unless samples [T] is at least one finite number and rate a whole
    number of Hz that sound has.
    """
    _checked_rate(rate, where)
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
            f"{where}: sample {first} is {samples[first]} as float32, expected finite numbers: export the sound again"
        )
    peak = float(np.abs(samples).max())
    if peak > MOST_PEAK:
        raise ValueError(
            f"{where}: the peak is {peak:g}, and floating point samples are in [-1, 1]: scale them, or give int16"
        )


def read_frame(pcm: np.ndarray | bytes | bytearray | memoryview, rate: int) -> Samples:
    """The first channel of a frame as float32 [T], a copy; pcm: as `read_audio` takes
    arrays, or the bytes of int16 mono; a memoryview of numbers is an array of those.

    Raises ValueError for what is no sound, and for a frame of 0 samples.
    """
    array = _checked_array(_frame_array(pcm))
    samples = _channels(array, 1)[:, 0]
    check_samples(samples, rate, "frame")
    return samples


def _frame_array(pcm: Any) -> Any:
    """A frame as an array."""
    if isinstance(pcm, memoryview) and pcm.format not in _BYTE_FORMATS:
        return np.asarray(pcm)
    if isinstance(pcm, bytes | bytearray | memoryview):
        data = bytes(pcm)
        if len(data) % 2:
            raise ValueError(
                f"frame: {len(data)} bytes are no whole number of int16 samples: send 2 bytes a sample"
            )
        return np.frombuffer(data, dtype="<i2")
    return pcm


def channel_peaks(array: np.ndarray) -> np.ndarray:
    """The peak of every channel [C] of samples [T] or [T, C], in the scale of their type."""
    if array.ndim == 1:
        array = array[:, None]
    if not len(array):
        return np.zeros(array.shape[1])
    peaks: np.ndarray = np.maximum(*(np.abs(end(0).astype(np.float64)) for end in (array.max, array.min)))
    peaks[~np.isfinite(peaks)] = 0.0  # a channel that is no sound has no peak
    return peaks


def frame_peaks(pcm: Any) -> np.ndarray:
    """The peak of every channel [C] of a frame that `read_frame` takes, 1 at full scale."""
    array = np.asarray(_frame_array(pcm))
    return channel_peaks(array) / _FULL_SCALE.get(array.dtype.name, 1.0)


def joined_peaks(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The peaks of two pieces of sound together; a channel that one of them lacks is silent there."""
    num = max(len(first), len(second))
    joined: np.ndarray = np.maximum(*(np.pad(peaks, (0, num - len(peaks))) for peaks in (first, second)))
    return joined


def silent_first(peaks: np.ndarray) -> int | None:
    """The loudest of several channels by their peaks [C], when the first is silent and it is not."""
    loudest = int(np.argmax(peaks)) if len(peaks) else 0
    return loudest if loudest and peaks[0] <= _SILENCE * peaks[loudest] else None


def warn_of_silence(peaks: np.ndarray, where: str) -> bool:
    """Log that of sound with these peaks [C] the first channel is silent and another is not; returns whether it
    is so.
    """
    loudest = silent_first(peaks)
    if loudest is None:
        return False
    log.warning(
        "%s: the first of %d channels is silent and number %d is not; only the first is heard: mix them, or "
        "give that channel",
        where,
        len(peaks),
        loudest + 1,
    )
    return True


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


def _checked_array(array: Any) -> np.ndarray:
    """An array of sound, [T] or [T, C]. Raises ValueError with its type, shape or peak."""
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise ValueError(
            f"audio samples are of type {type(array).__name__}, expected a numpy array [T] or [T, C]"
        )
    plain: np.ndarray = np.asarray(array)  # without a subclass's own methods: a matrix has no [T]
    _check_array(plain)
    return plain


def _check_array(array: np.ndarray) -> None:
    shape = list(array.shape)
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] == 0):
        raise ValueError(f"audio samples have shape {shape}, expected [T] or [T, C] (time first)")
    if array.ndim == 2 and array.shape[1] > max(array.shape[0], _MOST_CHANNELS):
        raise ValueError(
            f"audio samples have shape {shape}, {shape[1]} channels: give time first, as [T, C]; samples.T does that"
        )
    if array.ndim == 2 and array.shape[1] > _MOST_OF_ALL:
        raise ValueError(
            f"audio samples have shape {shape}, {shape[1]} channels: at most {_MOST_OF_ALL} are sound, and the first is heard"
        )
    if array.dtype.kind != "f" and array.dtype.name not in _FULL_SCALE:
        raise ValueError(
            f"audio samples are {array.dtype}, expected floating point in [-1, 1], int16 or int32"
        )
    if array.dtype.name == "int32" and _holds_int16(array):
        raise ValueError(
            f"audio samples are int32 with a peak of {np.abs(array.astype(np.int64)).max()}, and full scale is 2**31: "
            "give int16, or scale them"
        )


def _holds_int16(array: np.ndarray) -> bool:
    """Whether int32 samples are those of int16: none is larger, and they fill the low bits."""
    if not array.size or array.min() < -(2**15) or array.max() >= 2**15:
        return False
    return bool((array & 0xFF).any())


def _channels(array: np.ndarray, most: int | None) -> Samples:
    """The first channels [T, C] (None: all) of a checked array, as float32 in [-1, 1]."""
    channels = (array[:, None] if array.ndim == 1 else array)[:, :most]
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # an infinity is refused later, with its place
            return channels.astype(np.float32)
    return (channels / _FULL_SCALE[array.dtype.name]).astype(np.float32)


def _decode(data: bytes, where: str, most: int | None, check_len: CheckLen | None) -> tuple[Samples, int]:
    if not data:
        raise ValueError(f"{where}: the file is empty (0 bytes): record or choose some sound")
    import soundfile

    class Forward(soundfile.SoundFile):  # type: ignore[misc]
        """A file that is not sought in: soundfile seeks after each read otherwise, and an MP3 clicks there."""

        def seekable(self) -> bool:
            return False

    try:
        with Forward(_Bytes(data)) as file:
            num_frames, rate = file.frames, file.samplerate
            if check_len is None or num_frames > _UNKNOWN_LEN:
                return _read_blocks(file, most, where), rate
    except (soundfile.SoundFileError, RuntimeError) as error:
        why = getattr(error, "error_string", str(error))  # without the prefix that holds a memory address
        raise ValueError(
            f"{where}: no audio that can be read ({why}): use a WAV, FLAC, OGG or MP3 file"
        ) from None
    check_len(num_frames, rate)
    return _decode(data, where, most, None)


class _Bytes(io.BytesIO):
    """Bytes in which any place may be sought: those that a damaged file names and has not are not gone to.

    An exception would be printed by soundfile's callback, which libsndfile calls.
    """

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place, or stay where there is none such, by which libsndfile knows that it failed."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _read_blocks(file: soundfile.SoundFile, most: int | None, where: str) -> Samples:
    """Block by block (other channels are not kept) until nothing comes: a damaged
    file may hold less than it says.
    """
    blocks = [np.zeros((0, min(file.channels, most or file.channels)), np.float32)]
    peaks = np.zeros(file.channels)
    left, most_frames = file.frames, max(1, _BLOCK // file.channels)
    while len(block := file.read(min(left, most_frames), dtype="float32", always_2d=True)):
        left -= len(block)
        blocks.append(block[:, :most].copy())
        if most is not None and file.channels > 1:
            peaks = np.maximum(peaks, np.abs(block).max(0))
    warn_of_silence(peaks, where)
    return np.concatenate(blocks)
