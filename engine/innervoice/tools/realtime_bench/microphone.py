"""Microphone: frames of 20 ms, each sent when it would have been recorded."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from innervoice.tools.realtime_bench.recordings import FRAME_S, SILENCE, Recording
from innervoice.tools.realtime_bench.wire import Wire

STALL_S = 0.005  # a send that takes longer was held up by the server


@dataclass
class SpokenQuestion:
    """A question that is being spoken. loud, ended: the times at which its first loud frame was sent, and at
    which its last frame was due.
    """

    recording: Recording
    begun_s: float = 0.0
    loud: asyncio.Future[float] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ended: asyncio.Future[float] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Microphone:
    """Sends questions on a clock; between them an open one sends silence, another nothing.

    A frame is due at the end of the 20 ms that it covers. lags_s: how late each frame was sent because this
    process was late; the time for which the server took no more is left out, and counted as stalled_s.
    """

    def __init__(self, wire: Wire, *, is_open: bool) -> None:
        self.lags_s: list[float] = []
        self.stalled_s = 0.0
        self._wire = wire
        self._is_open = is_open
        self._speeches: deque[SpokenQuestion] = deque()
        self._spoken = asyncio.Event()

    def say(self, recording: Recording) -> SpokenQuestion:
        """Speak a recording from the next frame on, or after the one that is being spoken."""
        speech = SpokenQuestion(recording)
        self._speeches.append(speech)
        self._spoken.set()
        return speech

    async def run(self) -> None:
        """Send frames until this is cancelled. Raises CallFailed."""
        loop = asyncio.get_running_loop()
        due_s, free_s, place = loop.time(), 0.0, 0
        while True:
            if not self._speeches and not self._is_open:
                self._spoken.clear()
                await self._spoken.wait()
                due_s = loop.time()
            # What is said during a frame is in the next one.
            speech = self._speeches[0] if self._speeches else None
            if speech is not None and place == 0:
                speech.begun_s = due_s
            due_s += FRAME_S
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            sent_s = loop.time()
            self.lags_s.append(max(0.0, sent_s - max(due_s, free_s)))
            await self._wire.send(SILENCE if speech is None else speech.recording.frames[place])
            if loop.time() - sent_s > STALL_S:
                free_s = loop.time()
                self.stalled_s += free_s - sent_s
            place = 0 if speech is None else self._follow(speech, place, sent_s, due_s)

    def _follow(self, speech: SpokenQuestion, place: int, sent_s: float, due_s: float) -> int:
        """Note what was sent; returns the place of the next frame."""
        if place == speech.recording.loud:
            speech.loud.set_result(sent_s)
        if place + 1 < len(speech.recording.frames):
            return place + 1
        speech.ended.set_result(due_s)
        self._speeches.popleft()
        return 0
