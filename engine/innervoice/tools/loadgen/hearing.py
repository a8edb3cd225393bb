"""Hearing: one reply gathered as it arrives, while its sound is played in real time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from innervoice.api.event_log import EventLog
from innervoice.runtime.record import Line
from innervoice.telemetry.metrics import RequestTimings, leading_silence_s
from innervoice.tools.loadgen.player import Player
from innervoice.tools.loadgen.results import CallResult
from innervoice.types import AudioChunk, Done, Event, TokenEvent


class Hearing:
    """Gathers the events of a reply with the times of their arrival; made when the question is asked, in a
    running loop.
    """

    def __init__(self) -> None:
        self.submitted_s = time.monotonic()
        self.error: str | None = None
        self._player = Player()
        self._log = EventLog()
        self._lines: list[Line] = []
        self._audio: list[tuple[float, int]] = []
        self._tokens: list[tuple[float, str]] = []
        self._pcm: list[np.ndarray] = []
        self._rate = 1
        self._done: Done | None = None

    def begin(self, record: Line | None) -> None:
        """Take the request's line of the event log."""
        if record is not None:
            self._lines.append(record)

    def add(self, event: Event) -> None:
        """Take an event that has just arrived."""
        now = time.monotonic()
        self._lines += self._log.feed(event)
        if isinstance(event, TokenEvent):
            self._tokens += [(now, event.kind)] * len(event.ids)
        elif isinstance(event, AudioChunk):
            self._player.feed(len(event.pcm) / event.rate)
            self._audio.append((now, len(event.pcm)))
            self._pcm.append(event.pcm if event.pcm.dtype == np.float32 else event.pcm / np.float32(2**15))
            self._rate = event.rate
        elif isinstance(event, Done):
            self._done = event
            self.error = event.error

    async def played(self, question: str, caller: int, request: Mapping[str, Any]) -> CallResult:
        """Wait until all sound is played, after the last event, and return the result."""
        finished_s = time.monotonic()
        self._player.finish()
        await self._player.played()
        done = self._done
        timings = RequestTimings(
            submitted_s=self.submitted_s,
            rate=self._rate,
            audio=tuple(self._audio),
            tokens=tuple(self._tokens),
            finished_s=finished_s,
            leading_silence_s=leading_silence_s(np.concatenate(self._pcm), self._rate) if self._pcm else None,
            finish_reason=None if done is None else done.finish_reason,
            error=self.error,
            request_id="" if done is None else done.reply_id,
        )
        return CallResult(
            timings,
            question,
            caller,
            self._player.num_starved,
            self._player.starved_s,
            None if done is None else done.usage,
            request,
            self._lines,
        )
