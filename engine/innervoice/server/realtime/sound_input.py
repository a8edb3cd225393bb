"""SoundInput: the sound of one user, between the client's appends and the engine's session.

Its clock counts all sound that was appended. With turn detection the engine gets sound from the beginning of
speech on; the sound before it waits in a short memory. Without, the engine gets everything at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from innervoice.api.session import Session
from innervoice.server.errors import ApiError
from innervoice.server.realtime.protocol.session_config import Turns, rate_of
from innervoice.server.realtime.protocol.session_patch import FormatType
from innervoice.server.turn_detector import (
    SpeechStarted,
    SpeechStopped,
    TurnDetection,
    TurnDetector,
    VoicedFrame,
)
from innervoice.server.vad.listener import SpeechLane, SpeechListener
from innervoice.types import Pcm16, RequestFailed

LEAST_MS = 100.0
KEPT_SILENCE_MS = 200.0
MEMORY_MARGIN_MS = 1500.0


@dataclass(frozen=True)
class Utterance:
    """Sound that was committed: samples of the format's rate, and its place on the clock.

    is_pending: whether the engine's session has it.
    """

    item_id: str
    samples: Pcm16
    format: FormatType
    start_ms: float
    end_ms: float
    is_pending: bool = True


@dataclass
class SoundInput:
    """The sound of one user. All methods run on the event loop, and none blocks.

    on_started, on_stopped: called when turn detection finds the beginning or the end of speech, which is
    committed by the latter. is_audible: whether the assistant can be heard now. on_failure: gets what the
    two raise.
    """

    session: Session
    listener: SpeechListener
    on_started: Callable[[SpeechStarted], None]
    on_stopped: Callable[[SpeechStopped], None]
    is_audible: Callable[[], bool]
    on_failure: Callable[[Exception], None]
    format: FormatType = "audio/pcm"

    def __post_init__(self) -> None:
        self._base_ms = 0.0  # of the clock, when the format began
        self._num = 0  # samples since then
        self._memory: deque[tuple[int, Pcm16]] = deque()  # with the number of the first sample of each
        self._open_from: int | None = None  # first sample of the open utterance
        self._floor = 0  # end of the utterance before
        self._detector: TurnDetector | None = None
        self._lane: SpeechLane | None = None
        self._padding_ms = 0.0

    @property
    def now_ms(self) -> float:
        """The clock: milliseconds of sound that were appended."""
        return self._ms(self._num)

    @property
    def is_open(self) -> bool:
        """Whether sound of an utterance that is not committed was given to the engine."""
        return self._open_from is not None

    @property
    def is_speaking(self) -> bool:
        """Whether turn detection hears speech."""
        return self._detector is not None and self._detector.is_speaking

    def configure(self, turns: Turns | None, kind: FormatType) -> None:
        """Take the settings of a session. Raises ApiError for another format while an utterance is open."""
        if kind != self.format:
            if self.is_open:
                raise ApiError(
                    "invalid_value",
                    "The format cannot change within a turn: commit or clear its sound first.",
                    "session.audio.input.format",
                )
            self._change_format(kind)
        if turns is None:
            self._stop_detection()
        elif self._detector is None:
            self._detector = TurnDetector(detection(turns))
            self._detector.end_turn(self.now_ms)
            self._open_lane()
        else:
            self._detector.configure(detection(turns))
        self._padding_ms = 0.0 if turns is None else float(turns.get("prefix_padding_ms", 300))

    def append(self, pcm: Pcm16) -> None:
        """Take samples of the user. Raises ApiError when they do not fit into a prompt any more."""
        if len(pcm) == 0:
            return
        self._memory.append((self._num, pcm))
        self._num += len(pcm)
        if self._detector is None and self._open_from is None:
            self._open_from = self._num - len(pcm)
        if self._open_from is not None:
            self._push_on(pcm)
        if self._lane is not None:
            self._lane.push(pcm)
        self._trim()

    def _push_on(self, pcm: Pcm16) -> None:
        """Give the engine the newest samples. Where they do not fit, detection ends the turn before them."""
        try:
            self._push(pcm)
        except ApiError:
            if self._detector is not None:
                self.on_stopped(SpeechStopped(self.now_ms, self.now_ms))
                return
            self._memory.pop()
            self._num -= len(pcm)
            if self._open_from == self._num:
                self._open_from = None
            raise

    async def room(self) -> None:
        """Wait until turn detection has judged enough of the sound to take more."""
        if self._lane is not None:
            await self._lane.room()

    def begin(self, start_ms: float) -> None:
        """Give the engine the sound since a time, as far as it is remembered."""
        if self._open_from is not None:
            return
        first = self._memory[0][0] if self._memory else self._num
        start = max(first, self._floor, self._number(start_ms))
        self._open_from = min(start, self._num)
        sound = self._since(self._open_from)
        if len(sound):
            self._push(sound)

    def commit(
        self,
        item_id: str,
        speech_end_ms: float | None = None,
        end_ms: float | None = None,
        *,
        is_apart: bool = False,
    ) -> Utterance:
        """End the utterance; it waits for a reply.

        speech_end_ms, end_ms: where turn detection heard its end and the end of its closing silence; None: it
        lasts until now. is_apart: the session forgets the sound, which it will get with the item.

        Raises ApiError, nothing changed, for less than 100 ms.
        """
        if self._open_from is None and self._detector is not None:
            if self._ms(self._num) - self._ms(self._remembered_from()) < LEAST_MS:
                raise _empty(self._ms(self._num) - self._ms(self._remembered_from()))
            self.begin(self._ms(self._floor))
        start = self._num if self._open_from is None else self._open_from
        if self._ms(self._num) - self._ms(start) < LEAST_MS:
            raise _empty(self._ms(self._num) - self._ms(start))
        least = start + int(LEAST_MS * self._rate / 1e3)
        keep_to = self._num
        if speech_end_ms is not None:
            keep_to = min(self._num, max(least, self._number(speech_end_ms + KEPT_SILENCE_MS)))
        drop_ms = 1e3 * (self._num - keep_to) / self._rate
        try:
            if is_apart:
                self.session.clear_audio(committed=False)
            else:
                self.session.commit_audio(drop_ms=drop_ms, item_id=item_id)
        except ValueError as error:
            raise ApiError("invalid_value", f"{error}.", None) from None
        samples = self._since(start)[: keep_to - start]
        self._close_at(self._num if end_ms is None else min(self._num, self._number(end_ms)))
        return Utterance(item_id, samples, self.format, self._ms(start), self._ms(keep_to), not is_apart)

    def clear(self) -> None:
        """Forget the sound that is not committed."""
        if self._open_from is not None:
            self.session.clear_audio(committed=False)
        self._close_at(self._num)
        self._memory.clear()
        if self._lane is not None:
            self._lane.reset()

    def close(self) -> None:
        """End the detection of turns."""
        self._stop_detection()

    @property
    def _rate(self) -> int:
        return rate_of(self.format)

    def _ms(self, number: int) -> float:
        return self._base_ms + 1e3 * number / self._rate

    def _number(self, ms: float) -> int:
        return round((ms - self._base_ms) * self._rate / 1e3)

    def _push(self, pcm: Pcm16) -> None:
        try:
            self.session.push_audio(pcm, self._rate)
        except ValueError as error:
            raise ApiError("invalid_value", f"{error}.", "audio") from None
        except RequestFailed as error:
            self.clear()
            raise ApiError("server_error", f"{error}.", "audio", "server_error") from None

    def _on_frames(self, frames: list[VoicedFrame]) -> None:
        for frame in frames:
            if self._detector is None:
                return
            found = self._detector.push(frame, assistant_audible=self.is_audible())
            try:
                if isinstance(found, SpeechStarted):
                    self.on_started(found)
                elif isinstance(found, SpeechStopped):
                    self.on_stopped(found)
            except Exception as error:  # no event of the client can be answered with it
                self.on_failure(error)

    def _open_lane(self) -> None:
        self._lane = self.listener.open(self._rate, self._on_frames, start_ms=self.now_ms)

    def _stop_detection(self) -> None:
        if self._lane is not None:
            self._lane.close()
        self._lane = None
        self._detector = None

    def _change_format(self, kind: FormatType) -> None:
        self._base_ms = self.now_ms
        self._num = 0
        self._floor = 0
        self.format = kind
        self._memory.clear()
        if self._lane is not None:
            self._lane.close()
            self._open_lane()

    def _close_at(self, number: int) -> None:
        """End the open utterance at a sample; later sound belongs to the next one."""
        self._open_from = None
        self._floor = number
        if self._detector is not None and self._detector.is_speaking:
            self._detector.end_turn(self._ms(number))
        self._trim()

    def _remembered_from(self) -> int:
        return max(self._floor, self._memory[0][0] if self._memory else self._num)

    def _since(self, number: int) -> Pcm16:
        pieces = [pcm[max(0, number - first) :] for first, pcm in self._memory if first + len(pcm) > number]
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int16)

    def _trim(self) -> None:
        """Forget sound that no utterance can begin with."""
        if self._open_from is not None:
            return
        keep_ms = self._padding_ms + MEMORY_MARGIN_MS
        least = max(self._floor, self._num - int(keep_ms * self._rate / 1e3))
        while self._memory and self._memory[0][0] + len(self._memory[0][1]) <= least:
            self._memory.popleft()


def detection(turns: Turns) -> TurnDetection:
    """Return the detector's settings of a session's turn detection."""
    if turns["type"] == "semantic_vad":
        return TurnDetection("semantic_vad", eagerness=turns["eagerness"])
    return TurnDetection(
        "server_vad",
        threshold=turns["threshold"],
        prefix_padding_ms=turns["prefix_padding_ms"],
        silence_duration_ms=turns["silence_duration_ms"],
    )


def _empty(found_ms: float) -> ApiError:
    return ApiError(
        "input_audio_buffer_commit_empty",
        f"The buffer has {found_ms:.0f} ms of sound: append at least {LEAST_MS:.0f} ms before a commit.",
    )
