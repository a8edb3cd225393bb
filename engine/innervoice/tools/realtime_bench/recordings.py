"""Recordings of questions as the frames of a microphone, encoded before any call begins."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from innervoice.codec.audio import read_audio, resample
from innervoice.telemetry.metrics import GATE_DBFS, GATE_FRAME_S, leading_silence_s
from innervoice.tools.loadgen.questions import bundled_questions
from innervoice.types import Samples

RATE = 24_000
FRAME_S = 0.02
FRAME_LEN = round(RATE * FRAME_S)
LEAD_S = 0.02  # of the recording before its first loud frame
ENDINGS = (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True)
class Recording:
    """A question as messages of the protocol, each a frame of 20 ms of PCM16 at 24 kHz.

    loud: index of the first frame that is louder than the gate. peaks: the largest sample of each frame, 1 at full
    scale.
    """

    name: str
    frames: tuple[bytes, ...]
    loud: int
    peaks: tuple[float, ...]

    @property
    def duration_s(self) -> float:
        """Seconds of speech."""
        return len(self.frames) * FRAME_S

    @classmethod
    def of(cls, name: str, samples: Samples, rate: int) -> Recording:
        """Cut the silence before and after the speech, resample and encode. Raises ValueError for silence."""
        spoken = resample(samples, rate, RATE)
        first_s = leading_silence_s(spoken, RATE)
        if first_s >= len(spoken) / RATE:
            raise ValueError(f"{name} is never louder than {GATE_DBFS:g} dBFS: record it louder")
        # Whole gate frames from the front, so that the end is found in the same frames.
        step = round(GATE_FRAME_S * RATE)
        spoken = np.pad(spoken, (0, -len(spoken) % step))
        end = len(spoken) - round(leading_silence_s(spoken[::-1], RATE) * RATE)
        begin = max(0, round((first_s - LEAD_S) * RATE))
        spoken = np.pad(spoken[begin:end], (0, -(end - begin) % FRAME_LEN))
        pcm = np.clip(np.rint(spoken * 32767), -32768, 32767).astype("<i2").reshape(-1, FRAME_LEN)
        loud = math.floor((first_s - begin / RATE) / FRAME_S + 1e-9)
        return cls(name, tuple(map(append_message, pcm)), loud, tuple(frame_peaks(pcm.reshape(-1))))


def append_message(pcm: np.ndarray) -> bytes:
    """Return the message that appends int16 samples to the server's input."""
    audio = base64.b64encode(pcm.astype("<i2").tobytes())
    return b'{"type":"input_audio_buffer.append","audio":"' + audio + b'"}'


SILENCE = append_message(np.zeros(FRAME_LEN, np.int16))
"""A frame of silence, which an open microphone sends between questions."""


def frame_peaks(pcm: np.ndarray, frame_len: int = FRAME_LEN) -> list[float]:
    """The largest magnitude of each frame of int16 samples [T], 1 at full scale; the last may be shorter."""
    if not len(pcm):
        return []
    starts = np.arange(0, len(pcm), frame_len)
    magnitude = np.abs(pcm.astype(np.int32))
    return [round(value / 32768, 3) for value in np.maximum.reduceat(magnitude, starts).tolist()]


def bundled_recordings() -> list[Recording]:
    """The recordings of the package."""
    return [
        Recording.of(one.name, *one.prompt) for one in bundled_questions() if isinstance(one.prompt, tuple)
    ]


def read_recordings(folder: Path) -> list[Recording]:
    """The recordings of a directory, in the order of their names. Raises FileNotFoundError, ValueError."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no directory: name one with recordings of questions")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not paths:
        raise ValueError(
            f"{folder} holds no recording: put files with the endings {', '.join(ENDINGS)} there"
        )
    return [Recording.of(path.name, *read_audio(path)) for path in paths]


def longest_s(recordings: Sequence[Recording]) -> float:
    """Seconds of the longest recording."""
    return max(one.duration_s for one in recordings)
