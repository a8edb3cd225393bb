"""HeardReply: one reply of the server as it arrives, and its playback in real time."""

from __future__ import annotations

import base64
import binascii
import math

import numpy as np

from innervoice.runtime.playback import Playback
from innervoice.telemetry.metrics import leading_silence_s
from innervoice.tools.realtime_bench.recordings import FRAME_S, frame_peaks
from innervoice.tools.realtime_bench.wire import CallFailed

FINISHES = {"completed": "stop", "incomplete": "length", "cancelled": "cancelled", "failed": "error"}


class HeardReply:
    """Times are those of the caller's clock, in seconds. The player starts with the first sound, unbuffered.

    audio: (arrival, samples) of each delta, those after an interruption too. peaks: the largest sample of every
    20 ms of each delta. stopped_s: the time at which the player was cleared; heard_s: what it had played of the
    reply then.
    """

    def __init__(self, response_id: str, created_s: float, rate: int) -> None:
        self.response_id = response_id
        self.created_s = created_s
        self.rate = rate
        self.item_id: str | None = None
        self.content_index = 0
        self.audio: list[tuple[float, int]] = []
        self.peaks: list[list[float]] = []
        self.done_s: float | None = None
        self.status = ""
        self.failure = ""
        self.stopped_s: float | None = None
        self.heard_s = 0.0
        self._playback = Playback()
        self._quiet: list[np.ndarray] = []  # the sound so far, until some of it is loud
        self._silence_s: float | None = None

    @property
    def has_sound(self) -> bool:
        """Whether any sound has come."""
        return bool(self.audio)

    @property
    def is_done(self) -> bool:
        """Whether the server has ended it."""
        return self.done_s is not None

    @property
    def dry_s(self) -> float:
        """The time at which all sound so far is played; -inf before the first."""
        return self._playback.dry_s

    @property
    def silence_s(self) -> float | None:
        """Seconds before the first sound that is louder than the gate; None without sound."""
        if self._silence_s is not None or not self.audio:
            return self._silence_s
        return sum(map(len, self._quiet)) / self.rate

    def add(self, now: float, delta: object) -> None:
        """Take a delta of sound, base64 of PCM16. Raises CallFailed for another thing."""
        try:
            data = base64.b64decode(delta, validate=True)  # type: ignore[arg-type]
            pcm = np.frombuffer(data, "<i2")
        except (TypeError, ValueError, binascii.Error) as error:
            raise CallFailed("bad message", f"a delta of sound is no base64 of PCM16: {error}") from error
        if not len(pcm):
            return
        self.audio.append((now, len(pcm)))
        self.peaks.append(frame_peaks(pcm, max(1, round(FRAME_S * self.rate))))
        if self.stopped_s is None:
            self._playback.send(now, len(pcm) / self.rate)
        if self._silence_s is None:
            self._find_sound(pcm)

    def end(self, now: float, status: str, failure: str = "") -> None:
        """Take the end. failure: the code of an error."""
        self.done_s = now
        self.status = status
        self.failure = failure

    def stop(self, now: float) -> None:
        """Clear the player, as a client does when its user speaks; a second time changes nothing."""
        if self.stopped_s is None:
            self.stopped_s = now
            self.heard_s = self._playback.heard_s(now)

    def is_playing(self, now: float) -> bool:
        """Whether there is something to interrupt: sound that is still to come or to be played."""
        return self.has_sound and (not self.is_done or now < self.dry_s)

    @property
    def played(self) -> tuple[tuple[float, int], ...]:
        """The deltas that came before the player was cleared."""
        until_s = math.inf if self.stopped_s is None else self.stopped_s
        return tuple(pair for pair in self.audio if pair[0] <= until_s)

    def _find_sound(self, pcm: np.ndarray) -> None:
        self._quiet.append(pcm / np.float32(2**15))
        joined = np.concatenate(self._quiet)
        silence_s = leading_silence_s(joined, self.rate)
        if silence_s < len(joined) / self.rate:
            self._silence_s = silence_s
            self._quiet.clear()
