"""Listeners, their players and an engine of numbers: the production planner decides, the device says how long
it takes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from innervoice.codec.glm_voice.chunks import SteadySettings
from innervoice.runtime.scheduler import (
    LearnedCosts,
    Phase,
    ReplyColumns,
    SchedulerSettings,
    TableIndices,
    plan_step,
    plan_voice,
)
from innervoice.schedule import Schedule
from innervoice.tools.simulator.device import SimulatedDevice, calibrate
from innervoice.tools.simulator.run import SimReply, SimulatedRun
from innervoice.tools.simulator.workload import SPEECH_RATE, Workload

TOKEN_S = 1 / SPEECH_RATE
_TRANSCRIPT, _SPEECH = (segment.budget or 0 for segment in Schedule.preset("interleaved").cycle)
_ARRIVES, _STOPS = 0, 1


@dataclass(frozen=True)
class Spoken:
    """The schedule transcript, speech, reflection, and the codec's chunks: the first ends after first_chunk
    speech tokens.

    hidden: budget of a reflection; first_hidden: of each reply's first, None: the same.
    """

    transcript: int = _TRANSCRIPT
    speech: int = _SPEECH
    hidden: int = 450
    first_hidden: int | None = None
    first_chunk: int = SteadySettings.first
    chunk: int = SteadySettings.chunk


class World:
    """A simulated run. Its clock is a number that grows by what steps and codec calls take, one after the other, as
    in the engine.

    Hidden tokens always fill their cap, the worst case; open and close, which are forced and need no step of
    their own, are left out. Players begin with the first chunk, and wait where they run dry.
    """

    def __init__(
        self,
        device: SimulatedDevice,
        settings: SchedulerSettings,
        workload: Workload,
        *,
        spoken: Spoken | None = None,
        num_pages: int = 120_000,
        costs: LearnedCosts | None = None,
    ) -> None:
        self.device = device
        self.settings = settings
        self.spoken = spoken or Spoken()
        self.costs = costs or calibrate(device)
        self.columns = ReplyColumns(1024)
        self.num_pages, self.pages_free = num_pages, num_pages
        self.now = 0.0
        self.run = SimulatedRun(settings.planner.name, 0.0)
        self._workload = workload
        self._num_turns = [0] * len(workload.starts_s)
        self._events: list[tuple[float, int, int]] = [
            (start, _ARRIVES, i) for i, start in enumerate(workload.starts_s)
        ]
        heapq.heapify(self._events)
        self._reply_at: dict[int, SimReply] = {}
        self._index: dict[int, int] = {}  # in run.replies, of the reply at a table index
        self._is_late = False  # since it was last asked
        capacity = len(self.columns.phase)
        self._speaks = np.zeros(capacity, np.bool_)  # the segment is speech; transcript otherwise
        self._segment_left, self._speech_left, self._chunk_left, self._voiced, self._speech_len = (
            np.zeros(capacity, np.int64) for _ in range(5)
        )

    def until(self, end_s: float, stop: Callable[[SimulatedRun], bool] | None = None) -> SimulatedRun:
        """Run to a time. stop: ends it before, asked whenever a chunk came too late."""
        while self.now < end_s:
            self._take_events()
            late, self._is_late = self._is_late, False
            if late and stop is not None and stop(self.run):
                break
            self._advance(end_s)
        self.run.duration_s = min(self.now, end_s)
        return self.run

    def join(self, when_s: float) -> None:
        """Add a listener, who asks first at a time; the workload knows him by the number of those before."""
        self._num_turns.append(0)
        heapq.heappush(self._events, (when_s, _ARRIVES, len(self._num_turns) - 1))

    def _advance(self, end_s: float) -> None:
        made = plan_step(self.columns, self.costs, self.settings, self.now, self.pages_free)
        columns = self.columns
        for table_index in made.preempt:
            self._preempt(table_index)
        for table_index in made.admit:
            columns.phase[table_index] = Phase.PREFILL if columns.prompt_left[table_index] else Phase.DECODE
        self._set_caps(made.cap_indices, made.caps)
        stepped = len(made.decode) > 0 or bool(made.prefill)
        if stepped:
            self._step(made.decode, made.prefill)
        voice = plan_voice(columns, self.costs, self.settings, self.now, idle=not stepped)
        if len(voice.indices):
            self._voice(voice.indices)
        if not stepped and not len(voice.indices):
            next_s = self._events[0][0] if self._events else math.inf
            self.now = min(max(min(next_s, made.wake_s, voice.wake_s), self.now + 1e-4), end_s)

    def _step(self, decode: TableIndices, prefill: list[tuple[int, int]]) -> None:
        columns = self.columns
        fed = 0
        finished = []
        context = 0
        for table_index, num in prefill:
            fed += num
            columns.prompt_left[table_index] -= num
            context += int(columns.context[table_index] - columns.prompt_left[table_index])
            if columns.prompt_left[table_index] == 0:
                finished.append(table_index)
                columns.phase[table_index] = Phase.DECODE
            self._grow(
                np.array([table_index]), columns.context[[table_index]] - columns.prompt_left[table_index]
            )
        draws = np.concatenate([decode, np.array(finished, np.int64)]) if finished else decode
        seconds = self.device.step_s(len(draws), int(columns.context[draws].sum()), fed, context)
        self.costs.observe_step(len(draws), fed, seconds)
        self.now += seconds
        self.run.step_s += seconds
        self.run.num_steps += 1
        self.run.num_drawn += len(draws)
        columns.served_s[decode] = self.now
        for table_index, _ in prefill:
            columns.served_s[table_index] = self.now
        held = columns.context[draws] + 1
        columns.context[draws] = held
        columns.num_drawn[draws] += 1
        self._grow(draws, held)
        self._draw(draws)

    def _grow(self, indices: TableIndices, tokens: TableIndices) -> None:
        """Pages for so many tokens of each."""
        columns = self.columns
        short = tokens > columns.pages[indices] * self.settings.page_size
        if not short.any():
            return
        indices, held = indices[short], -(-tokens[short] // self.settings.page_size)
        self.pages_free -= int((held - columns.pages[indices]).sum())
        columns.pages[indices] = held
        assert self.pages_free >= 0, "a step took more pages than there are"

    def _draw(self, indices: TableIndices) -> None:
        columns = self.columns
        hides = columns.is_reflecting[indices]
        hidden, spoken = indices[hides], indices[~hides]
        if len(hidden):
            count = columns.hidden_count[hidden] + 1
            columns.hidden_count[hidden] = count
            columns.hidden_total[hidden] += 1
            self.run.num_hidden += len(hidden)
            self._close(hidden[count >= columns.hidden_cap[hidden]])
        if not len(spoken):
            return
        columns.spoken_left[spoken] -= 1
        left = self._segment_left[spoken] - 1
        self._segment_left[spoken] = left
        said = spoken[self._speaks[spoken]]
        self._speech_left[said] -= 1
        chunk = self._chunk_left[said] - 1
        self._chunk_left[said] = chunk
        columns.unvoiced_s[said] += TOKEN_S
        ready = said[chunk == 0]
        if len(ready):
            columns.chunks_ready[ready] += 1
            columns.ready_s[ready] += columns.chunk_s[ready]
            self._chunk_left[ready] = np.minimum(self.spoken.chunk, self._speech_left[ready])
        over = spoken[left == 0]
        if len(over):
            self._next_segment(over)
        if len(ready):
            self._look_at_chunk(ready)

    def _next_segment(self, over: TableIndices) -> None:
        columns = self.columns
        spoke = self._speaks[over]
        begins = over[~spoke]
        self._speaks[begins] = True
        self._segment_left[begins] = np.minimum(self.spoken.speech, self._speech_left[begins])
        ended = over[spoke]
        done = ended[self._speech_left[ended] == 0]
        columns.phase[done] = Phase.VOICING
        goes_on = ended[self._speech_left[ended] > 0]
        self._speaks[goes_on] = False
        self._segment_left[goes_on] = self.spoken.transcript
        most = columns.hidden_most[goes_on]
        cap = np.minimum(most, np.maximum(columns.hidden_cap[goes_on], columns.hidden_floor[goes_on]))
        columns.hidden_cap[goes_on] = cap
        opens = goes_on[cap > 0]
        columns.is_reflecting[opens] = True
        columns.hidden_count[opens] = 0

    def _close(self, indices: TableIndices) -> None:
        if not len(indices):
            return
        self.columns.is_reflecting[indices] = False
        self.columns.hidden_most[indices] = self.spoken.hidden

    def _look_at_chunk(self, indices: TableIndices) -> None:
        """Sound of the next chunk, and how many spoken tokens it still takes: its speech, and the transcripts
        before that.
        """
        columns, left = self.columns, self._chunk_left[indices]
        columns.chunk_s[indices] = left * TOKEN_S
        here = np.where(self._speaks[indices], self._segment_left[indices], 0)
        ahead = np.where(self._speaks[indices], 0, self._segment_left[indices])
        beyond = np.maximum(left - here, 0)
        segments = -(-beyond // self.spoken.speech) - (~self._speaks[indices] & (beyond > 0))
        columns.spoken_left[indices] = left + ahead + segments * self.spoken.transcript

    def _set_caps(self, indices: TableIndices, caps: TableIndices) -> None:
        columns = self.columns
        columns.hidden_cap[indices] = caps
        hidden = indices[columns.is_reflecting[indices]]
        self._close(hidden[columns.hidden_count[hidden] >= columns.hidden_cap[hidden]])

    def _voice(self, indices: TableIndices) -> None:
        columns = self.columns
        first = self._voiced[indices] == 0
        size = np.where(first, self.spoken.first_chunk, self.spoken.chunk)
        size = np.minimum(size, self._speech_len[indices] - self._voiced[indices])
        sound_s = size * TOKEN_S
        total_s = float(sound_s.sum())
        seconds = self.device.voice_s(len(indices), total_s)
        self.costs.observe_voice(len(indices), seconds)
        self.now += seconds
        run = self.run
        run.voice_s = run.voice_s + seconds
        run.sound_s = run.sound_s + total_s
        run.num_voice_calls = run.num_voice_calls + 1
        self._voiced[indices] += size
        columns.chunks_ready[indices] -= 1
        columns.ready_s[indices] -= sound_s
        columns.unvoiced_s[indices] -= sound_s
        columns.sound_total_s[indices] += sound_s
        columns.served_s[indices] = self.now
        for table_index, one_s in zip(indices.tolist(), sound_s.tolist(), strict=True):
            self._deliver(table_index, one_s)

    def _deliver(self, table_index: int, sound_s: float) -> None:
        columns, reply = self.columns, self._reply_at[table_index]
        if not reply.chunks:
            reply.sound_end_s = self.now
            reply.hidden_before_audio = int(columns.hidden_total[table_index])
            columns.has_sound[table_index] = True
            if reply.heard_s < reply.speech_tokens * TOKEN_S:
                heapq.heappush(self._events, (self.now + reply.heard_s, _STOPS, self._index[table_index]))
        elif self.now > reply.sound_end_s + 1e-9:
            reply.num_underruns += 1
            reply.underrun_s = max(reply.underrun_s, self.now - reply.sound_end_s)
            reply.sound_end_s = self.now
            self._is_late = True
            self.run.num_late += 1
        reply.chunks.append((self.now, sound_s))
        reply.sound_end_s += sound_s
        columns.sound_end_s[table_index] = reply.sound_end_s
        if self._voiced[table_index] == self._speech_len[table_index]:
            reply.finished_s = self.now
            heapq.heappush(self._events, (reply.sound_end_s, _STOPS, self._index[table_index]))
            self._forget(table_index)

    def _take_events(self) -> None:
        while self._events and self._events[0][0] <= self.now:
            when_s, what, index = heapq.heappop(self._events)
            if what == _ARRIVES:
                self._arrive(index, when_s)
                continue
            reply = self.run.replies[index]
            if reply.ended_s is None:
                reply.ended_s = when_s
                if reply.table_index >= 0:
                    self._forget(reply.table_index)
                self._arrive(reply.listener, when_s)

    def _arrive(self, listener: int, when_s: float) -> None:
        turn = self._workload.turn(listener, self._num_turns[listener])
        if turn is None:
            return
        self._num_turns[listener] += 1
        columns = self.columns
        table_index = columns.add(when_s)
        reply = SimReply(listener, when_s, turn.prompt_tokens, turn.speech_tokens, turn.heard_s, table_index)
        self._reply_at[table_index], self._index[table_index] = reply, len(self.run.replies)
        self.run.replies.append(reply)
        if len(columns.phase) > len(self._speaks):
            self._widen(len(columns.phase))
        columns.prompt_left[table_index] = columns.prompt_len[table_index] = columns.context[table_index] = (
            turn.prompt_tokens
        )
        columns.is_live[table_index] = True
        columns.spoken_rate[table_index] = SPEECH_RATE * (1 + self.spoken.transcript / self.spoken.speech)
        first = self.spoken.hidden if self.spoken.first_hidden is None else self.spoken.first_hidden
        columns.hidden_most[table_index] = columns.hidden_cap[table_index] = first
        self._speaks[table_index], self._segment_left[table_index] = False, self.spoken.transcript
        self._speech_len[table_index] = self._speech_left[table_index] = turn.speech_tokens
        self._chunk_left[table_index], self._voiced[table_index] = (
            min(self.spoken.first_chunk, turn.speech_tokens),
            0,
        )
        self._look_at_chunk(np.array([table_index]))

    def _widen(self, capacity: int) -> None:
        for name in ("_speaks", "_segment_left", "_speech_left", "_chunk_left", "_voiced", "_speech_len"):
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.zeros(capacity - len(column), column.dtype)]))

    def _preempt(self, table_index: int) -> None:
        """Its pages are free; what it had is fed again once it gets a row."""
        columns = self.columns
        self.pages_free += int(columns.pages[table_index])
        columns.pages[table_index], columns.phase[table_index] = 0, Phase.WAITING
        columns.prompt_left[table_index] = columns.context[table_index]
        self._reply_at[table_index].num_preempted += 1
        self.run.num_preempted += 1

    def _forget(self, table_index: int) -> None:
        reply = self._reply_at.pop(table_index)
        reply.hidden, reply.table_index = int(self.columns.hidden_total[table_index]), -1
        self.pages_free += int(self.columns.pages[table_index])
        self.columns.remove(table_index)


def simulate(
    device: SimulatedDevice,
    settings: SchedulerSettings,
    workload: Workload,
    duration_s: float,
    *,
    spoken: Spoken | None = None,
    num_pages: int = 120_000,
    stop: Callable[[SimulatedRun], bool] | None = None,
) -> SimulatedRun:
    """One run of the planner over a device that was calibrated first."""
    return World(device, settings, workload, spoken=spoken, num_pages=num_pages).until(duration_s, stop)
