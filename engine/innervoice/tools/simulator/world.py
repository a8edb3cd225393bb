"""Listeners, their players and an engine of numbers: the production planner decides, the device says how long it takes."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from innervoice.runtime.scheduler import (
    LearnedCosts,
    Phase,
    Places,
    ReplyColumns,
    SchedulerSettings,
    plan_step,
    plan_voice,
)
from innervoice.tools.simulator.device import SimulatedDevice, calibrate
from innervoice.tools.simulator.run import SimReply, SimulatedRun
from innervoice.tools.simulator.workload import SPEECH_RATE, Workload

TOKEN_S = 1 / SPEECH_RATE
_ARRIVES, _STOPS = 0, 1


@dataclass(frozen=True)
class Spoken:
    """The schedule transcript, speech, reflection, and the codec's chunks: the first ends after first_chunk speech tokens.

    hidden: budget of a reflection; first_hidden: of each reply's first, None: the same.
    """

    transcript: int = 13
    speech: int = 26
    hidden: int = 450
    first_hidden: int | None = None
    first_chunk: int = 10
    chunk: int = 26


class World:
    """One run. Its clock is a number that grows by what steps and codec calls take, one after the other, as in the engine.

    Hidden tokens always fill their cap, the worst case; open and close, which are forced and need no step of their own, are left
    out. Players begin with the first chunk, and wait where they run dry.
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
        self.device, self.settings, self.spoken = device, settings, spoken or Spoken()
        self.costs = costs or calibrate(device)
        self.jobs = ReplyColumns(1024)
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
        self._index: dict[int, int] = {}  # of the reply at a place in run.replies
        self._is_late = False  # since it was last asked
        capacity = len(self.jobs.phase)
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

    def _advance(self, end_s: float) -> None:
        made = plan_step(self.jobs, self.costs, self.settings, self.now, self.pages_free)
        jobs = self.jobs
        for place in made.preempt:
            self._preempt(place)
        for place in made.admit:
            jobs.phase[place] = Phase.PREFILL if jobs.prompt_left[place] else Phase.DECODE
        self._set_caps(made.cap_places, made.caps)
        stepped = len(made.decode) > 0 or bool(made.prefill)
        if stepped:
            self._step(made.decode, made.prefill)
        voice = plan_voice(jobs, self.costs, self.settings, self.now, idle=not stepped)
        if len(voice.places):
            self._voice(voice.places)
        if not stepped and not len(voice.places):
            next_s = self._events[0][0] if self._events else math.inf
            self.now = min(max(min(next_s, made.wake_s, voice.wake_s), self.now + 1e-4), end_s)

    def _step(self, decode: Places, prefill: list[tuple[int, int]]) -> None:
        jobs, fed, finished, context = self.jobs, 0, [], 0
        for place, num in prefill:
            fed += num
            jobs.prompt_left[place] -= num
            context += int(jobs.context[place] - jobs.prompt_left[place])
            if jobs.prompt_left[place] == 0:
                finished.append(place)
                jobs.phase[place] = Phase.DECODE
            self._grow(np.array([place]), jobs.context[[place]] - jobs.prompt_left[place])
        draws = np.concatenate([decode, np.array(finished, np.int64)]) if finished else decode
        seconds = self.device.step_s(len(draws), int(jobs.context[draws].sum()), fed, context)
        self.costs.observe_step(len(draws), fed, seconds)
        self.now += seconds
        self.run.step_s += seconds
        self.run.num_steps += 1
        self.run.num_drawn += len(draws)
        jobs.served_s[decode] = self.now
        for place, _ in prefill:
            jobs.served_s[place] = self.now
        held = jobs.context[draws] + 1
        jobs.context[draws] = held
        jobs.num_drawn[draws] += 1
        self._grow(draws, held)
        self._draw(draws)

    def _grow(self, places: Places, tokens: Places) -> None:
        """Pages for so many tokens of each."""
        jobs = self.jobs
        short = tokens > jobs.pages[places] * self.settings.page_size
        if not short.any():
            return
        places, held = places[short], -(-tokens[short] // self.settings.page_size)
        self.pages_free -= int((held - jobs.pages[places]).sum())
        jobs.pages[places] = held
        assert self.pages_free >= 0, "a step took more pages than there are"

    def _draw(self, places: Places) -> None:
        jobs = self.jobs
        hides = jobs.is_reflecting[places]
        hidden, spoken = places[hides], places[~hides]
        if len(hidden):
            count = jobs.hidden_count[hidden] + 1
            jobs.hidden_count[hidden] = count
            jobs.hidden_total[hidden] += 1
            self.run.num_hidden += len(hidden)
            self._close(hidden[count >= jobs.hidden_cap[hidden]])
        if not len(spoken):
            return
        jobs.spoken_left[spoken] -= 1
        left = self._segment_left[spoken] - 1
        self._segment_left[spoken] = left
        said = spoken[self._speaks[spoken]]
        self._speech_left[said] -= 1
        chunk = self._chunk_left[said] - 1
        self._chunk_left[said] = chunk
        jobs.unvoiced_s[said] += TOKEN_S
        ready = said[chunk == 0]
        if len(ready):
            jobs.chunks_ready[ready] += 1
            jobs.ready_s[ready] += jobs.chunk_s[ready]
            self._chunk_left[ready] = np.minimum(self.spoken.chunk, self._speech_left[ready])
        over = spoken[left == 0]
        if len(over):
            self._next_segment(over)
        if len(ready):
            self._look_at_chunk(ready)

    def _next_segment(self, over: Places) -> None:
        jobs = self.jobs
        spoke = self._speaks[over]
        begins = over[~spoke]
        self._speaks[begins] = True
        self._segment_left[begins] = np.minimum(self.spoken.speech, self._speech_left[begins])
        ended = over[spoke]
        done = ended[self._speech_left[ended] == 0]
        jobs.phase[done] = Phase.VOICING
        goes_on = ended[self._speech_left[ended] > 0]
        self._speaks[goes_on] = False
        self._segment_left[goes_on] = self.spoken.transcript
        most = jobs.hidden_most[goes_on]
        cap = np.minimum(most, np.maximum(jobs.hidden_cap[goes_on], jobs.hidden_floor[goes_on]))
        jobs.hidden_cap[goes_on] = cap
        opens = goes_on[cap > 0]
        jobs.is_reflecting[opens] = True
        jobs.hidden_count[opens] = 0

    def _close(self, places: Places) -> None:
        if not len(places):
            return
        self.jobs.is_reflecting[places] = False
        self.jobs.hidden_most[places] = self.spoken.hidden

    def _look_at_chunk(self, places: Places) -> None:
        """Sound of the next chunk, and how many spoken tokens it still takes: its speech, and the transcripts before that."""
        jobs, left = self.jobs, self._chunk_left[places]
        jobs.chunk_s[places] = left * TOKEN_S
        here = np.where(self._speaks[places], self._segment_left[places], 0)
        ahead = np.where(self._speaks[places], 0, self._segment_left[places])
        beyond = np.maximum(left - here, 0)
        segments = -(-beyond // self.spoken.speech) - (~self._speaks[places] & (beyond > 0))
        jobs.spoken_left[places] = left + ahead + segments * self.spoken.transcript

    def _set_caps(self, places: Places, caps: Places) -> None:
        jobs = self.jobs
        jobs.hidden_cap[places] = caps
        hidden = places[jobs.is_reflecting[places]]
        self._close(hidden[jobs.hidden_count[hidden] >= jobs.hidden_cap[hidden]])

    def _voice(self, places: Places) -> None:
        jobs = self.jobs
        first = self._voiced[places] == 0
        size = np.where(first, self.spoken.first_chunk, self.spoken.chunk)
        size = np.minimum(size, self._speech_len[places] - self._voiced[places])
        sound_s = size * TOKEN_S
        total_s = float(sound_s.sum())
        seconds = self.device.voice_s(len(places), total_s)
        self.costs.observe_voice(len(places), seconds)
        self.now += seconds
        run = self.run
        run.voice_s, run.sound_s, run.num_voice_calls = (
            run.voice_s + seconds,
            run.sound_s + total_s,
            run.num_voice_calls + 1,
        )
        self._voiced[places] += size
        jobs.chunks_ready[places] -= 1
        jobs.ready_s[places] -= sound_s
        jobs.unvoiced_s[places] -= sound_s
        jobs.sound_total_s[places] += sound_s
        jobs.served_s[places] = self.now
        for place, one_s in zip(places.tolist(), sound_s.tolist(), strict=True):
            self._deliver(place, one_s)

    def _deliver(self, place: int, sound_s: float) -> None:
        jobs, reply = self.jobs, self._reply_at[place]
        if not reply.chunks:
            reply.sound_end_s = self.now
            reply.hidden_before_audio = int(jobs.hidden_total[place])
            jobs.has_sound[place] = True
            if reply.heard_s < reply.speech_tokens * TOKEN_S:
                heapq.heappush(self._events, (self.now + reply.heard_s, _STOPS, self._index[place]))
        elif self.now > reply.sound_end_s + 1e-9:
            reply.num_underruns += 1
            reply.underrun_s = max(reply.underrun_s, self.now - reply.sound_end_s)
            reply.sound_end_s = self.now
            self._is_late = True
        reply.chunks.append((self.now, sound_s))
        reply.sound_end_s += sound_s
        jobs.sound_end_s[place] = reply.sound_end_s
        if self._voiced[place] == self._speech_len[place]:
            reply.finished_s = self.now
            heapq.heappush(self._events, (reply.sound_end_s, _STOPS, self._index[place]))
            self._forget(place)

    def _take_events(self) -> None:
        while self._events and self._events[0][0] <= self.now:
            when_s, what, index = heapq.heappop(self._events)
            if what == _ARRIVES:
                self._arrive(index, when_s)
                continue
            reply = self.run.replies[index]
            if reply.ended_s is None:
                reply.ended_s = when_s
                if reply.place >= 0:
                    self._forget(reply.place)
                self._arrive(reply.listener, when_s)

    def _arrive(self, listener: int, when_s: float) -> None:
        turn = self._workload.turn(listener, self._num_turns[listener])
        if turn is None:
            return
        self._num_turns[listener] += 1
        jobs = self.jobs
        place = jobs.add(when_s)
        reply = SimReply(listener, when_s, turn.prompt_tokens, turn.speech_tokens, turn.heard_s, place)
        self._reply_at[place], self._index[place] = reply, len(self.run.replies)
        self.run.replies.append(reply)
        if len(jobs.phase) > len(self._speaks):
            self._widen(len(jobs.phase))
        jobs.prompt_left[place] = jobs.prompt_len[place] = jobs.context[place] = turn.prompt_tokens
        jobs.is_live[place] = True
        jobs.spoken_rate[place] = SPEECH_RATE * (1 + self.spoken.transcript / self.spoken.speech)
        first = self.spoken.hidden if self.spoken.first_hidden is None else self.spoken.first_hidden
        jobs.hidden_most[place] = jobs.hidden_cap[place] = first
        self._speaks[place], self._segment_left[place] = False, self.spoken.transcript
        self._speech_len[place] = self._speech_left[place] = turn.speech_tokens
        self._chunk_left[place], self._voiced[place] = min(self.spoken.first_chunk, turn.speech_tokens), 0
        self._look_at_chunk(np.array([place]))

    def _widen(self, capacity: int) -> None:
        for name in ("_speaks", "_segment_left", "_speech_left", "_chunk_left", "_voiced", "_speech_len"):
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.zeros(capacity - len(column), column.dtype)]))

    def _preempt(self, place: int) -> None:
        """Its pages are free; what it had is fed again once it gets a row."""
        jobs = self.jobs
        self.pages_free += int(jobs.pages[place])
        jobs.pages[place], jobs.phase[place] = 0, Phase.WAITING
        jobs.prompt_left[place] = jobs.context[place]
        self._reply_at[place].num_preempted += 1
        self.run.num_preempted += 1

    def _forget(self, place: int) -> None:
        reply = self._reply_at.pop(place)
        reply.hidden, reply.place = int(self.jobs.hidden_total[place]), -1
        self.pages_free += int(self.jobs.pages[place])
        self.jobs.remove(place)


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
