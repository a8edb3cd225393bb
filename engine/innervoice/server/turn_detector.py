"""TurnDetector: where a user's turns begin and end, from the probability of speech frame by frame.

A pure state machine: no clock, no sound, no network.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Literal

Eagerness = Literal["low", "medium", "high", "auto"]

START_MS = 60.0  # of speech that begin a turn in silence: two frames of 32 ms
START_OVER_REPLY_MS = (
    190.0  # and while a reply is heard, which a microphone without echo cancellation hears too
)
OVER_REPLY_MARGIN = 0.15  # added to the threshold while a reply is heard
HYSTERESIS = 0.15  # below the threshold by so much, speech has ended
SHORT_TURN_MS = 600.0  # a turn of a word or two: more may come
TAIL_MS = 200.0  # of speech, which is compared with the speech before it
MAX_FRAMES = 128  # of the turn's last speech, 4 s, by which its end is judged
FALL_DB = 3.0  # the fall of a sentence's end
FALL_SEMITONES = 2.0  # the fall of its pitch
RISE_SEMITONES = 4.0  # the rise of a question's; a smaller one promises more
TAIL_VOICED = 4  # voiced frames whose pitch is the end's
WEAK_DB = 20.0  # softer by so much than the loudest, a frame's pitch is not trusted
# Silence that ends a turn of semantic_vad, at once and at the latest, in ms.
WAITS_MS: dict[Eagerness, tuple[float, float]] = {
    "high": (300.0, 2000.0),
    "medium": (600.0, 4000.0),
    "auto": (600.0, 4000.0),
    "low": (1000.0, 8000.0),
}


@dataclass(frozen=True)
class VoicedFrame:
    """A frame of sound as the network judged it.

    start_ms, end_ms: on the clock of all sound of the session. probability: of speech. level_db: RMS, 0 is
    full scale. pitch_hz: of a voiced frame, else 0.
    """

    start_ms: float
    end_ms: float
    probability: float
    level_db: float
    pitch_hz: float = 0.0


@dataclass(frozen=True)
class TurnDetection:
    """Settings, by their names in the Realtime protocol; times in milliseconds."""

    kind: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float = 0.5
    prefix_padding_ms: float = 300.0
    silence_duration_ms: float = 500.0
    eagerness: Eagerness = "auto"


@dataclass(frozen=True)
class SpeechStarted:
    """A turn has begun. audio_start_ms: its first sound, padding included."""

    audio_start_ms: float


@dataclass(frozen=True)
class SpeechStopped:
    """A turn has ended. audio_end_ms includes the closing silence, which begins at speech_end_ms."""

    audio_end_ms: float
    speech_end_ms: float


@dataclass
class _Turn:
    """Speech that goes on. silence_start_ms: where the silence at its end began, None while there is none.

    speech: its last frames of speech. doubt: from 0 to 1, whether the speech before that silence is complete.
    """

    start_ms: float
    speech: deque[VoicedFrame]
    silence_start_ms: float | None = None
    doubt: float = 1.0


class TurnDetector:
    """Takes frames in order, and reports the begin and the end of turns in turn.

    server_vad: silence of a set length ends a turn. semantic_vad: the silence is short after a sentence that
    seems complete and long otherwise. By approximation complete is a turn of some length whose level falls at
    its end, and whose pitch falls as well or rises as a question's does.
    """

    def __init__(self, settings: TurnDetection) -> None:
        self._settings = settings
        self._turn: _Turn | None = None
        self._rising: list[VoicedFrame] = []  # frames since the first of what may become a turn
        self._floor_ms = 0.0  # the end of the turn before

    @property
    def is_speaking(self) -> bool:
        """Whether a turn has begun and not ended."""
        return self._turn is not None

    def configure(self, settings: TurnDetection) -> None:
        """Go on with other settings; a turn that is open stays open."""
        self._settings = settings

    def end_turn(self, at_ms: float) -> None:
        """Forget the open turn, which ended at this time by other means. The next one begins later."""
        self._turn = None
        self._rising = []
        self._floor_ms = max(self._floor_ms, at_ms)

    def push(
        self, frame: VoicedFrame, *, assistant_audible: bool = False
    ) -> SpeechStarted | SpeechStopped | None:
        """Take the next frame. assistant_audible: a reply is heard, so a turn needs more to begin."""
        if self._turn is None:
            return self._begin(frame, assistant_audible)
        return self._go_on(self._turn, frame)

    def _begin(self, frame: VoicedFrame, assistant_audible: bool) -> SpeechStarted | None:
        threshold = self._settings.threshold
        if assistant_audible:
            threshold = min(threshold + OVER_REPLY_MARGIN, max(threshold, 0.95))
        is_speech = frame.probability >= threshold
        if not is_speech and (not self._rising or frame.probability < self._low()):
            self._rising = []
            return None

        # A frame between the two thresholds neither begins a turn nor breaks one that may be beginning.
        self._rising.append(frame)
        needed_ms = START_OVER_REPLY_MS if assistant_audible else START_MS
        if not is_speech or frame.end_ms - self._rising[0].start_ms < needed_ms:
            return None
        start_ms = max(self._rising[0].start_ms - self._settings.prefix_padding_ms, self._floor_ms, 0.0)
        self._turn = _Turn(self._rising[0].start_ms, deque(self._rising, MAX_FRAMES))
        self._rising = []
        return SpeechStarted(start_ms)

    def _go_on(self, turn: _Turn, frame: VoicedFrame) -> SpeechStopped | None:
        if frame.probability >= self._low():
            turn.silence_start_ms = None
            turn.speech.append(frame)
            return None
        if turn.silence_start_ms is None:
            turn.silence_start_ms = frame.start_ms
            turn.doubt = doubt_of(list(turn.speech), frame.start_ms - turn.start_ms)
        speech_end_ms = turn.silence_start_ms
        if frame.end_ms - speech_end_ms < self._wait_ms(turn.doubt):
            return None
        self.end_turn(frame.end_ms)
        return SpeechStopped(frame.end_ms, speech_end_ms)

    def _low(self) -> float:
        """The probability below which there is no speech."""
        return max(self._settings.threshold - HYSTERESIS, min(self._settings.threshold, 0.01))

    def _wait_ms(self, doubt: float) -> float:
        """The silence that ends a turn."""
        if self._settings.kind == "server_vad":
            return self._settings.silence_duration_ms
        least_ms, most_ms = WAITS_MS[self._settings.eagerness]
        return least_ms + doubt * (most_ms - least_ms)


def doubt_of(speech: Sequence[VoicedFrame], length_ms: float) -> float:
    """Return whether more is to come after a turn's speech, from 0 to 1; length_ms: of the whole turn."""
    if length_ms < SHORT_TURN_MS:
        return 1.0
    completeness = _fall_db(speech) / FALL_DB
    change = _pitch_change(speech)
    if change is not None:
        completeness = min(completeness, -change / FALL_SEMITONES if change < 0 else change / RISE_SEMITONES)
    return min(max(1.0 - completeness, 0.0), 1.0)


def _fall_db(speech: Sequence[VoicedFrame]) -> float:
    """By how much the last frames of speech are softer than those before."""
    tail_ms = speech[-1].end_ms - TAIL_MS
    tail = [frame.level_db for frame in speech if frame.end_ms > tail_ms]
    before = [frame.level_db for frame in speech if frame.end_ms <= tail_ms]
    if not before:
        return 0.0
    return mean(before) - mean(tail)


def _pitch_change(speech: Sequence[VoicedFrame]) -> float | None:
    """Semitones from the middle pitch of speech to that of its end, None: too little of it is voiced."""
    loudest = max(frame.level_db for frame in speech)
    pitches = [one.pitch_hz for one in speech if one.pitch_hz > 0 and one.level_db > loudest - WEAK_DB]
    before, tail = pitches[:-TAIL_VOICED], pitches[-TAIL_VOICED:]
    if len(before) < TAIL_VOICED:
        return None
    return 12 * math.log2(median(tail) / median(before))
