"""SpeechListener: the sound of all connections, judged in one call on one thread."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import soxr

from innervoice.server.turn_detector import VoicedFrame
from innervoice.server.vad.network import FRAME_LEN, FRAME_MS, RATE, SpeechNetwork, level_db
from innervoice.server.vad.pitch import pitch_hz
from innervoice.types import Pcm16, Samples
from innervoice_kernels.native import torch_threads_here

log = logging.getLogger("innervoice")

GATE_DB = -60.0  # softer frames are no speech: the network is not asked
LEAST_PERIOD_S = 0.01  # between two calls, so that frames of several listeners meet in one
MAX_BATCH = 256
MAX_WAITING = 1000  # frames of a lane, about half a minute: its sender is to wait

OnFrames = Callable[[list[VoicedFrame]], None]


class SpeechLane:
    """The sound of one connection. Its methods are for the event loop that opened it, and never block."""

    def __init__(
        self, listener: SpeechListener, rate: int, on_frames: OnFrames, start_ms: float, state: Any
    ) -> None:
        self.rate = rate
        self.state = state  # of the network; belongs to the listener's thread
        self.generation = 0  # frames of an earlier one are dropped
        self._listener = listener
        self._on_frames = on_frames
        self._loop = asyncio.get_running_loop()
        self._resampler = self._new_resampler()
        self._left: Samples = np.zeros(0, dtype=np.float32)
        self._time_ms = start_ms  # of the first sample in `_left`
        self._pushed_ms = start_ms
        self._num_waiting = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._has_room = asyncio.Event()
        self._is_closed = False

    def push(self, pcm: Pcm16) -> None:
        """Take samples [n] at the lane's rate; whole frames go to the listener."""
        self._pushed_ms += 1e3 * len(pcm) / self.rate
        samples = pcm.astype(np.float32) / 32768.0
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        joined = np.concatenate([self._left, samples])
        num = len(joined) // FRAME_LEN
        self._left = joined[num * FRAME_LEN :]
        frames = joined[: num * FRAME_LEN].reshape(num, FRAME_LEN)
        if num == 0 or self._is_closed:
            return
        starts = [self._time_ms + FRAME_MS * i for i in range(num)]
        self._time_ms += FRAME_MS * num
        self._num_waiting += num
        self._idle.clear()
        self._listener._queue(self, self.generation, list(zip(starts, frames, strict=True)))

    def reset(self) -> None:
        """Forget the sound so far, judged or not; the clock goes on."""
        self.generation += 1
        self._left = np.zeros(0, dtype=np.float32)
        self._resampler = self._new_resampler()
        self._time_ms = self._pushed_ms
        self._judged(self._listener._restart(self))

    async def room(self) -> None:
        """Wait until few enough frames wait to be judged for more of them."""
        while self._num_waiting >= MAX_WAITING and not self._is_closed:
            self._has_room.clear()
            await self._has_room.wait()

    async def drain(self) -> None:
        """Wait until all whole frames so far have been reported."""
        await self._idle.wait()

    def close(self) -> None:
        """End the lane: nothing is reported any more."""
        self._is_closed = True
        self.generation += 1
        self._listener._forget(self)
        self._idle.set()
        self._has_room.set()

    def _new_resampler(self) -> soxr.ResampleStream | None:
        if self.rate == RATE:
            return None
        return soxr.ResampleStream(self.rate, RATE, 1, dtype="float32", quality="LQ")

    def _deliver(self, generation: int, frames: list[VoicedFrame]) -> None:
        """Report frames, on the event loop."""
        self._judged(len(frames))
        if generation == self.generation and not self._is_closed:
            self._on_frames(frames)

    def _judged(self, num: int) -> None:
        """Count frames that wait no more."""
        self._num_waiting -= num
        if self._num_waiting == 0:
            self._idle.set()
        if self._num_waiting < MAX_WAITING:
            self._has_room.set()

    def _report(self, generation: int, frames: list[VoicedFrame]) -> None:
        """Hand frames to the event loop, from the listener's thread."""
        try:
            self._loop.call_soon_threadsafe(self._deliver, generation, frames)
        except RuntimeError:  # the loop is closed: no one is left to hear
            self._is_closed = True


class SpeechListener:
    """Judges frames of all lanes, one of each lane in a call, as soon as they come; its thread starts with the first.

    network: see `SpeechNetwork`. on_call: gets the seconds that each call took.
    """

    def __init__(self, network: SpeechNetwork, on_call: Callable[[float], None] = lambda _: None) -> None:
        self._network = network
        self._on_call = on_call
        self._changed = threading.Condition()
        self._waiting: dict[SpeechLane, deque[tuple[int, float, Samples]]] = {}
        self._restarted: set[SpeechLane] = set()
        self._thread: threading.Thread | None = None
        self._is_closing = False

    def open(self, rate: int, on_frames: OnFrames, start_ms: float = 0.0) -> SpeechLane:
        """Open a lane for sound of rate Hz, on the running event loop.

        on_frames: called on that loop with frames in order. start_ms: of the first sample. Raises ValueError on
        a closed listener.
        """
        if self._is_closing:
            raise ValueError("the listener is closed: the server has ended")
        return SpeechLane(self, rate, on_frames, start_ms, self._network.begin())

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None and not self._is_closing:
            self._thread = threading.Thread(target=self._run, name="innervoice-vad", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _queue(self, lane: SpeechLane, generation: int, frames: Sequence[tuple[float, Samples]]) -> None:
        with self._changed:
            queue = self._waiting.setdefault(lane, deque())
            queue.extend((generation, start_ms, frame) for start_ms, frame in frames)
            self._changed.notify()
        self.start()

    def _restart(self, lane: SpeechLane) -> int:
        """Set a lane back to no sound -> the number of frames that were dropped unjudged."""
        with self._changed:
            self._restarted.add(lane)
            return len(self._waiting.pop(lane, ()))

    def _forget(self, lane: SpeechLane) -> None:
        with self._changed:
            self._waiting.pop(lane, None)
            self._restarted.discard(lane)

    def _run(self) -> None:
        torch_threads_here(1)
        while True:
            with self._changed:
                while not self._waiting and not self._is_closing:
                    self._changed.wait()
                if self._is_closing:
                    return
                batch = self._take()
            began_s = time.perf_counter()
            self._judge(batch)
            took_s = time.perf_counter() - began_s
            self._on_call(took_s)
            if not self._waiting:
                time.sleep(max(0.0, LEAST_PERIOD_S - took_s))

    def _take(self) -> list[tuple[SpeechLane, int, float, Samples]]:
        """The next frame of each lane, with restarted lanes set back."""
        for lane in self._restarted:
            lane.state = self._network.begin()
        self._restarted.clear()
        batch = []
        for lane in list(self._waiting)[:MAX_BATCH]:
            queue = self._waiting.pop(lane)
            batch.append((lane, *queue.popleft()))
            if queue:
                self._waiting[lane] = queue  # behind the others
        return batch

    def _judge(self, batch: list[tuple[SpeechLane, int, float, Samples]]) -> None:
        frames = np.stack([frame for *_, frame in batch])
        levels = level_db(frames)
        speech, pitches = np.zeros((2, len(batch)), dtype=np.float32)
        loud = [i for i, level in enumerate(levels) if level >= GATE_DB]
        if loud:
            try:
                judged, states = self._network.push(frames[loud], [batch[i][0].state for i in loud])
            except Exception:
                log.exception("voice activity could not be judged")
            else:
                speech[loud] = judged
                pitches[loud] = pitch_hz(frames[loud])
                for i, state in zip(loud, states, strict=True):
                    batch[i][0].state = state
        figures = np.stack([speech, levels, pitches], axis=1).tolist()
        for (lane, generation, start_ms, _), heard in zip(batch, figures, strict=True):
            lane._report(generation, [VoicedFrame(start_ms, start_ms + FRAME_MS, *heard)])
