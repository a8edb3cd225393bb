"""Sound files by libsndfile: which containers hold a sound, and how its samples get there.

soundfile is imported where it is first used.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from innervoice.files.replacing import replacing

USUAL = "use .wav, .flac or .ogg"
_BLOCK = 65_536  # samples a call: libvorbis keeps those of one call on its stack
_PROBE = 1024  # samples that are written to see whether a container knows a rate
_SAME = {"AIF": "AIFF", "AIFC": "AIFF", "OGA": "OGG", "OPUS": "OGG", "WAVE": "WAV"}
_SUBTYPES = {"OPUS": "OPUS"}  # of an ending that says more than its container
_TWO_FILES = "SD2"  # libsndfile would write the second one, "._", into the working directory
_MAX_VORBIS_RATE = 200_000  # libsndfile crashes when libvorbis refuses to begin a stream

Pcm16 = npt.NDArray[np.int16]


@dataclass(frozen=True)
class SoundFormat:
    """A container that libsndfile writes and the coding of its samples, under libsndfile's names."""

    container: str
    subtype: str

    def check(self, rate: int, channels: int = 1) -> None:
        """Raise ValueError where such a file cannot hold sound of that many channels at `rate` Hz.

        Samples are written to memory and their header is read back, because no table says it for all formats:
        some know a few rates, some round, some always state the same one.
        """
        if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or not 0 < rate < 2**31:
            raise ValueError(f"the rate of the sound is {rate!r}, expected a whole number of Hz")
        try:
            if self.subtype == "VORBIS" and rate > _MAX_VORBIS_RATE:
                raise ValueError(f"Vorbis has at most {_MAX_VORBIS_RATE} Hz")
            memory = io.BytesIO()
            self.write(memory, np.zeros((_PROBE, channels), np.int16), rate, np.asarray)
            _, found = _header(memory)
            if found != rate:
                raise ValueError(f"the file would state {found} Hz")
        except ValueError as error:
            sound = f"{rate} Hz" if channels == 1 else f"{channels} channels at {rate} Hz"
            raise ValueError(
                f"{self.container} with {self.subtype} cannot hold sound of {sound} ({error}): {USUAL}, or another rate"
            ) from None

    def write(
        self, file: Any, samples: npt.NDArray[Any], rate: int, to_pcm16: Callable[[Any], Pcm16]
    ) -> None:
        """Write samples [T, C] to a binary file, block by block.

        to_pcm16: some of them to 16-bit integers. Raises ValueError with libsndfile's reason.
        """
        import soundfile

        with (
            _plain_errors(),
            soundfile.SoundFile(
                file, "w", int(rate), samples.shape[1], self.subtype, format=self.container
            ) as out,
        ):
            for begin in range(0, len(samples), _BLOCK):
                out.write(to_pcm16(samples[begin : begin + _BLOCK]))


def sound_format(path: str | PathLike[str]) -> SoundFormat:
    """The format that a file's ending asks for; without an ending it is WAV.

    Raises ValueError for an ending that means no sound, and for a container without a header.
    """
    import soundfile

    suffix = Path(path).suffix
    ending = suffix.removeprefix(".").upper() or "WAV"
    container = _SAME.get(ending, ending)
    if container not in soundfile.available_formats():
        raise ValueError(
            f"cannot write sound as {path}: its name must end in .wav, .flac, .ogg or another format of sound"
        )
    usual = soundfile.default_subtype(container)
    if usual is None or container == _TWO_FILES:
        raise ValueError(
            f"cannot write sound as {path}: a {suffix} file by itself does not state its rate, {USUAL}"
        )
    # Floating-point codings would hold 16-bit integers without their scale.
    subtype = _SUBTYPES.get(
        ending, "PCM_16" if "PCM_16" in soundfile.available_subtypes(container) else usual
    )
    return SoundFormat(container, subtype)


def write_sound(
    path: str | PathLike[str], samples: npt.NDArray[Any], rate: int, to_pcm16: Callable[[Any], Pcm16]
) -> None:
    """Write samples [T] or [T, C] at `rate` Hz to a file, whole or not at all, as its ending says.

    to_pcm16: some of them to 16-bit integers. Raises OSError, and ValueError for no samples, for an ending, a
    rate or channels that cannot be written, and for more samples than the container counts.
    """
    if samples.ndim not in (1, 2) or 0 in samples.shape:
        raise ValueError(
            f"cannot write samples of shape {list(samples.shape)} to {path}: a sound file holds [T] or [T, C] samples"
        )
    if samples.dtype.kind != "f" and samples.dtype != np.int16:
        raise ValueError(
            f"cannot write samples of {samples.dtype} to {path}: they are floating point in [-1, 1] or int16"
        )
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise ValueError(
            f"cannot write sound as {path}: {np.isfinite(samples).argmin()} is its first sample that is not finite"
        )
    kind = sound_format(path)
    channels = samples[:, None] if samples.ndim == 1 else samples
    kind.check(rate, channels.shape[1])
    with replacing(path) as part, open(part, "w+b", buffering=0) as file:
        target = _Target(file)
        try:
            kind.write(target, channels, rate, to_pcm16)
            num, _ = _header(target)
        except ValueError as error:
            target.check()  # a full disk is the reason behind libsndfile's
            raise ValueError(f"cannot write sound as {path} ({error}): {USUAL}") from None
        target.check()
        if num < len(samples):
            raise ValueError(
                f"cannot write sound as {path}: {kind.container} holds {num} of the {len(samples)} samples, {USUAL}"
            )


class _Target:
    """A raw file that libsndfile writes to by callbacks, which must not raise: the first error is kept."""

    def __init__(self, file: io.FileIO) -> None:
        self.seek = file.seek
        self.tell = file.tell
        self.readinto = file.readinto
        self._write = file.write
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write all of it; after an error nothing more."""
        rest = memoryview(data)
        while rest and self._error is None:
            try:
                rest = rest[self._write(rest) or 0 :]
            except OSError as error:
                self._error = error
        return len(data)

    def check(self) -> None:
        """Raise the error that a write met."""
        if self._error is not None:
            raise self._error


def _header(file: Any) -> tuple[int, int]:
    """The samples a channel and the rate that a sound file states. Raises ValueError where it does not."""
    import soundfile

    file.seek(0)
    with _plain_errors(), soundfile.SoundFile(file) as sound:
        if not sound.seekable():
            raise ValueError("players cannot seek in it")
        return int(sound.frames), int(sound.samplerate)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What soundfile raises as ValueError with libsndfile's reason alone, without addresses of memory."""
    try:
        yield
    except (RuntimeError, TypeError, OverflowError, AssertionError) as error:
        reason = getattr(error, "error_string", None) or str(error) or type(error).__name__
        raise ValueError(reason.removeprefix("Error : ").rstrip(".")) from None
