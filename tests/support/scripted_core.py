"""A core under a virtual clock whose model and voice are scripted: logits are a hash of what lies in a row's
pages.

Whatever pages, prefixes, chunks, preemption, forks and cuts do to a row, a token comes out right only if
every token before it lies where the row's page table says. Costs are those of a small machine, so that
deadlines matter.
"""

from __future__ import annotations

import zlib
from collections import abc
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from innervoice.codec.speech_codec import Ready, SpokenChunk
from innervoice.model.device_step import Emitted, RowStart
from innervoice.model.pages import PagePool
from innervoice.model.runner import ModelRunner
from innervoice.model.sequence import Sequence
from innervoice.runtime.make_core import make_core
from innervoice.runtime.request import Request
from innervoice.runtime.scheduler import SchedulerSettings
from innervoice.schedule import (
    UNLIMITED,
    Cursor,
    CursorState,
    FreeCursor,
    Program,
    Schedule,
    compile_schedule,
    make_cursor,
)
from innervoice.telemetry.trace import Tracer
from innervoice.types import AudioChunk, Done, Event, Sampling, TokenEvent, Vocabulary
from innervoice_kernels.sampling.cursor_columns import Ending
from innervoice_kernels.sampling.sample import REFUSED, Draw, sample

VOCABULARY = Vocabulary(
    size=48, text=(0, 21), speech=(24, 44), end_of_turn=44, open=45, close=46, done=47, eos=(44,)
)
POISON, NAN, MUTE = (
    21,
    22,
    40,
)  # a prompt id whose step raises, one that gives NaN; a speech id that breaks the voice
PAGE = 4
RATE, CODES_PER_S, SAMPLES = 250.0, 12.5, 20
FIRST, CHUNK = 4, 10
FREE = compile_schedule(Schedule(cycle=(), guided=False), VOCABULARY)


def program(schedule: Schedule) -> Program:
    """A schedule over the scripted vocabulary."""
    return compile_schedule(schedule, VOCABULARY)


@dataclass
class Kept:
    """Pages off the device."""

    contents: list[list[int]]
    num_tokens: int


class ScriptedRunner:
    """A model whose logits are a hash of the tokens in its pages.

    steady: it ends nothing by itself, and breaks no voice.
    """

    def __init__(self, num_pages: int, *, steady: bool) -> None:
        self.steady = steady
        self.pages = [[-1] * PAGE for _ in range(num_pages)]
        self.is_broken = False
        self.num_fed = 0

    def copy_page(self, source: int, target: int) -> None:
        self.pages[target] = list(self.pages[source])

    def save_pages(self, row: Sequence) -> Kept:
        used = row.table.pages[: -(-row.num_cached // PAGE)]
        return Kept([list(self.pages[page]) for page in used], row.num_cached)

    def load_pages(self, row: Sequence, saved: Kept) -> None:
        if saved.num_tokens <= row.num_cached:
            return
        for index in range(row.num_cached // PAGE, len(saved.contents)):
            self.pages[row.table.pages[index]] = list(saved.contents[index])
        row.num_cached = saved.num_tokens

    def forward(self, rows: abc.Sequence[Sequence], outputs: object = None) -> Tensor:
        if self.is_broken:
            raise RuntimeError("the device is lost")
        for row in rows:
            new = row.ids[row.num_cached : row.end]
            assert new and row.end <= row.table.capacity, "a row without tokens or pages"
            if POISON in new:
                raise RuntimeError("this row is poisoned")
        logits = []
        for row in rows:
            for position in range(row.num_cached, row.end):
                self.pages[row.table.pages[position // PAGE]][position % PAGE] = row.ids[position]
            self.num_fed += row.num_new
            logits.append(self.logits(row.table.pages, row.end))
            row.num_cached = row.end
        return torch.stack(logits)

    forward_isolated = ModelRunner.forward_isolated
    _is_alive = ModelRunner._is_alive

    def logits(self, pages: abc.Sequence[int], num_tokens: int) -> Tensor:
        """Logits [V] after num_tokens tokens that lie in these pages."""
        seen = [self.pages[pages[i // PAGE]][i % PAGE] for i in range(num_tokens)]
        noise = np.random.default_rng(zlib.crc32(np.array(seen, np.int32).tobytes())).standard_normal(
            VOCABULARY.size
        )
        if self.steady:
            noise[24:] -= 9.0  # text goes on while it may
            noise[[MUTE, 44, 46, 47]] -= 9.0
        noise[MUTE] -= 0.5  # seldom
        return torch.from_numpy(noise * (np.nan if NAN in seen else 3.0)).float()


@dataclass
class Line:
    """A row of the scripted device."""

    start: RowStart
    cursor: Cursor | FreeCursor
    pages: list[int]
    token: int
    position: int
    num_tokens: int
    ending: Ending = Ending.RUNNING


@dataclass
class Queued:
    """The tokens of a step of the scripted device, until they are read."""

    emitted: list[Emitted]
    took_s: None = None


class ScriptedDevice:
    """A device that steps the scripted model with cursors and page tables of its own; it cannot hold every
    fourth seed.
    """

    def __init__(self, runner: ScriptedRunner, max_rows: int, max_model_len: int) -> None:
        self.max_rows, self.max_model_len = max_rows, max_model_len
        self.rows = self
        self.num_steps = 0
        self._runner = runner
        self._lines: list[Line | None] = [None] * max_rows
        self._caps: dict[int, int | None] = {}

    def begin(self, row: int, start: RowStart) -> None:
        if (start.sampling.seed or 0) % 4 == 3:
            raise ValueError("this reply is too much for the device")
        assert self._lines[row] is None and start.position < self.max_model_len
        cursor = make_cursor(start.program, start.caps, state=start.cursor)
        self._lines[row] = Line(
            start, cursor, list(start.pages), start.token, start.position, start.num_tokens
        )

    def set_pages(self, pages: Mapping[int, abc.Sequence[int]]) -> None:
        for row, held in pages.items():
            self._line(row).pages = list(held)

    def order(self, caps: Mapping[int, int | None]) -> None:
        self._caps = dict(caps)

    def end(self, row: int) -> None:
        self._lines[row] = None

    def move(self, source: int, target: int) -> None:
        assert self._lines[target] is None, "in use"
        self._lines[target], self._lines[source] = self._lines[source], None

    def state(self, row: int) -> tuple[CursorState, int]:
        return self._line(row).cursor.state, self._line(row).num_tokens

    def step(self, num_rows: int, count: int = 1, begun: object = None) -> Any:
        assert count == 1 and num_rows == 1 + max(self._caps)
        self.num_steps += 1
        emitted = []
        for row, cap in self._caps.items():
            line = self._lines[row]
            assert line is not None, "an idle row is asked to take part"
            if line.ending is Ending.RUNNING:
                emitted.append(self._step(row, line, cap))
        return Queued(emitted)

    def read(self, pending: Any) -> list[list[Emitted]]:
        return [pending.emitted]

    def mark(self) -> None:
        return None

    def warmup(self) -> float:
        return 0.0

    def stats(self) -> Any:
        raise AssertionError("nobody asks")

    def _line(self, row: int) -> Line:
        line = self._lines[row]
        assert line is not None, "an idle row"
        return line

    def _step(self, row: int, line: Line, cap: int | None) -> Emitted:
        page, place = line.pages[line.position // PAGE], line.position % PAGE
        self._runner.pages[page][place] = line.token
        self._runner.num_fed += 1
        cursor, discarded = line.cursor, False
        if cap is not None:
            number, own = cursor.num_reflections, line.start.caps
            if cursor.is_reflecting:
                cursor.lower_cap(max(cap, 1))
            else:
                cursor.cap_next(min(cap, own[number] if number < len(own) else UNLIMITED))
        emission, logprob = None, None
        while emission is None:
            if cursor.waits:
                line.ending = Ending.FED
                return Emitted(row, -1, None, cursor.segment, False, line.ending, None, discarded)
            if cursor.forced is not None:
                emission, logprob = cursor.emit_forced(), None
                break
            draw = Draw(
                cursor.mask.ranges, cursor.mask.extras, 0.0, 0, 1.0, 0, line.num_tokens, int(discarded)
            )
            ids, logprobs = sample(self._runner.logits(line.pages, line.position + 1)[None], [draw])
            if int(ids) == REFUSED:
                line.ending = Ending.REFUSED
                return Emitted(row, -1, None, cursor.segment, False, line.ending, None)
            emission, logprob = cursor.draw(int(ids)), float(logprobs)
            discarded |= emission is None
        line.num_tokens += 1
        spent = line.num_tokens >= line.start.sampling.max_new_tokens
        going = Ending.FED if cursor.waits else Ending.RUNNING
        line.ending = Ending.STOP if cursor.is_done else Ending.LENGTH if spent else going
        line.token, line.position = emission.token, line.position + 1
        return Emitted(
            row,
            emission.token,
            emission.kind,
            emission.segment,
            emission.forced,
            line.ending,
            logprob,
            discarded,
        )


class ScriptedVoice:
    """Twenty samples a code, that depend on the code and its place; chunks after FIRST codes, then every
    CHUNK.
    """

    sample_rate, codes_per_s = int(RATE), CODES_PER_S
    codes_per_frame, lag_s = 1, 256 / 22050

    def __init__(self, max_slots: int) -> None:
        self.errors: dict[str, str] = {}
        self.num_slots = max_slots
        self._codes: dict[str, list[int]] = {}
        self._made: dict[str, int] = {}
        self._finished: set[str] = set()
        self._over: set[str] = set()

    @property
    def num_open(self) -> int:
        return len(self._codes)

    def next_border(self, num_codes: int) -> int:
        return FIRST if num_codes < FIRST else FIRST + ((num_codes - FIRST) // CHUNK + 1) * CHUNK

    def open(self, key: str) -> None:
        assert key not in self._codes and len(self._codes) < self.num_slots, "a slot is taken"
        self._codes[key], self._made[key] = [], 0

    def push(self, key: str, codes: abc.Sequence[int]) -> None:
        assert key not in self._finished, "finished"
        self._codes[key] += codes

    def tick(self, key: str) -> None:
        assert key not in self._finished, "finished"

    def finish(self, key: str) -> None:
        self._finished.add(key)

    def _due(self, key: str) -> bool:
        border = self.next_border(self._made[key])
        return key not in self._over and (len(self._codes[key]) >= border or key in self._finished)

    def ready(self) -> list[Ready]:
        return [
            Ready(key, len(codes) - self._made[key]) for key, codes in self._codes.items() if self._due(key)
        ]

    def ended(self) -> list[str]:
        return []

    def step(self, keys: Collection[str] | None = None) -> list[SpokenChunk]:
        chunks: list[SpokenChunk] = []
        for key in self._codes if keys is None else keys:
            assert self._due(key), "nothing is due"
            codes, begin = self._codes[key], self._made[key]
            if MUTE - 24 in codes[begin:]:
                self.errors[key] = "this voice broke"
                self._over.add(key)
                chunks.append(SpokenChunk(key, np.zeros(0, np.float32), True))
                continue
            is_last = key in self._finished
            end = (
                len(codes)
                if is_last
                else max(b for b in range(len(codes) + 1) if b == FIRST or (b - FIRST) % CHUNK == 0)
            )
            places = np.arange(begin * SAMPLES, end * SAMPLES)
            samples = np.sin(places * (1.0 + np.repeat(codes[begin:end], SAMPLES))).astype(np.float32)
            self._made[key] = end
            if is_last:
                self._over.add(key)
            chunks.append(SpokenChunk(key, samples, is_last))
        return chunks

    def close(self, key: str) -> None:
        del self._codes[key], self._made[key]
        self._finished.discard(key)
        self._over.discard(key)
        self.errors.pop(key, None)


class Letters:
    """Text ids are letters."""

    text_range = VOCABULARY.text

    def token_bytes(self, token: int) -> bytes:
        return bytes([97 + token]) if token < 21 else b""


@dataclass
class Received:
    """The events that a reply's reader got."""

    ids: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    pcm: list[Any] = field(default_factory=list)
    sound: list[tuple[float, float]] = field(default_factory=list)  # when, and how long
    done: Done | None = None

    @property
    def samples(self) -> Any:
        return np.concatenate(self.pcm) if self.pcm else np.zeros(0, np.float32)

    def take(self, event: Event) -> None:
        assert self.done is None, "an event after the last one"
        if isinstance(event, TokenEvent):
            self.ids += event.ids
            self.kinds += [event.kind] * len(event.ids)
        elif isinstance(event, AudioChunk):
            self.pcm.append(event.pcm)
            self.sound.append((event.t, len(event.pcm) / event.rate))
        elif isinstance(event, Done):
            self.done = event


class World:
    """A core, its clock, and the events of each reply.

    step_s: of a step, by rows and fed tokens; voice_s: of a codec call, by chunks. stepped: the device draws,
    for whom it can. runner, stepping: others than the scripted ones.
    """

    def __init__(
        self,
        num_pages: int = 64,
        max_rows: int = 8,
        step_s: Callable[[int, int], float] = lambda rows, fed: 0.01 + 0.002 * rows + 0.0005 * fed,
        voice_s: Callable[[int], float] = lambda chunks: 0.01 + 0.002 * chunks,
        max_model_len: int = 160,
        settings: Mapping[str, Any] | None = None,
        *,
        steady: bool = True,
        stepped: bool = False,
        runner: Any = None,
        **core: Any,
    ) -> None:
        self.now = 100.0
        self.tracer = Tracer(lambda: round(1e9 * self.now))
        self.runner: Any = runner or ScriptedRunner(num_pages, steady=steady)
        self.voice = ScriptedVoice(max_rows)
        self.pool = PagePool(num_pages, PAGE)
        made = {"max_rows": max_rows, "page_size": PAGE, "prefill_chunk": 16, "max_batch": 64} | dict(
            settings or {}
        )
        core = {
            "scheduler": SchedulerSettings(**made),
            "max_rows": max_rows,
            "max_model_len": max_model_len,
        } | core
        if stepped:
            core["device"] = (ScriptedDevice(self.runner, max_rows, max_model_len), FREE)
        self.core = make_core(self.runner, self.pool, Letters(), self.voice, self.tracer, **core)  # type: ignore[arg-type]
        self.received: dict[str, Received] = {}
        self.requests: dict[str, Request] = {}
        self._step_s, self._voice_s = step_s, voice_s

    def request(
        self, reply_id: str, prompt: abc.Sequence[int], schedule: Program, seed: int = 0, **request: Any
    ) -> Request:
        """A greedy request, of 40 tokens at most by default."""
        sampling = Sampling(
            temperature=0.0, top_k=0, top_p=1.0, seed=seed, max_new_tokens=request.pop("most", 40)
        )
        sampling = replace(sampling, **request.pop("sampling", {}))
        return Request(reply_id, tuple(prompt), schedule, sampling, self.now, **{"is_live": True} | request)

    def submit(
        self, reply_id: str, prompt: abc.Sequence[int], schedule: Program, seed: int = 0, **request: Any
    ) -> None:
        made = self.request(reply_id, prompt, schedule, seed, **request)
        self.core.submit(made, self.now)
        self.requests[reply_id] = made
        self.received[reply_id] = Received()

    def drain(self) -> None:
        for event in self.core.drain(self.now):
            self.received[event.reply_id].take(event)

    def step(self) -> bool:
        """A step of tokens and one of sound, time passing as they cost; False: nothing could be done, and the
        clock went on.
        """
        tokens = self.core.step_tokens(self.now)
        if tokens.rows or tokens.prompt_tokens:
            took = self._step_s(tokens.rows, tokens.prompt_tokens)
            self.core.costs.observe_step(tokens.rows, tokens.prompt_tokens, took)
            self.now += took
        self.drain()
        sound = self.core.step_speech(self.now)
        if sound.chunks:
            took = self._voice_s(sound.chunks)
            self.core.costs.observe_voice(sound.chunks, took)
            self.now += took
        self.drain()
        if not (tokens.is_nothing and sound.is_nothing):
            return True
        self.now = min(max(self.core.wake_s, self.now + 0.001), self.now + 0.5)
        return False

    @property
    def has_work(self) -> bool:
        """Whether anything is left to do."""
        return self.core.has_work

    def run(self, most: int = 5000) -> None:
        """Step until nothing is left to do."""
        for _ in range(most):
            self.drain()
            if not self.has_work:
                return
            self.step()
        raise AssertionError(f"no end after {most} steps: {self.core.occupancy()}")
